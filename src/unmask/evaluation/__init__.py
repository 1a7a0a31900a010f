"""Measuring trained models: tasks and comparisons."""

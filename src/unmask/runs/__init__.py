"""Runs as values: the config that makes one, many trained side by side, a finished one opened again."""

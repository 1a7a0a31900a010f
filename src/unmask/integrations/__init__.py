"""Processes and objectives inside other training loops."""

from unmask.integrations.transformers import MaskedDiffusionTrainer

__all__ = ["MaskedDiffusionTrainer"]

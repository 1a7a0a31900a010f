"""The training loop and what it leaves behind."""

from unmask.store.metrics import read_metrics
from unmask.training.config import TrainingConfig
from unmask.training.trainer import Trainer

__all__ = ["Trainer", "TrainingConfig", "read_metrics"]

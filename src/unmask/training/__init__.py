"""The training loop and what it leaves behind."""

from unmask.store.metrics import read_metrics
from unmask.training.callbacks import BestCheckpoint, Callback, EarlyStopping
from unmask.training.config import TrainingConfig
from unmask.training.step import TrainingStep
from unmask.training.trainer import Trainer

__all__ = ["BestCheckpoint", "Callback", "EarlyStopping", "Trainer", "TrainingConfig", "TrainingStep", "read_metrics"]

# The names that this package hands on, and where they are: see unmask.lazy.
from unmask.store.metrics import read_metrics as read_metrics
from unmask.training.callbacks import BestCheckpoint as BestCheckpoint
from unmask.training.callbacks import Callback as Callback
from unmask.training.callbacks import EarlyStopping as EarlyStopping
from unmask.training.config import TrainingConfig as TrainingConfig
from unmask.training.step import TrainingStep as TrainingStep
from unmask.training.trainer import Trainer as Trainer

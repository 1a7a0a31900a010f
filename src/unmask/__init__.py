"""unmask: train masked diffusion models faster and more stably, and measure it on your own data."""

__version__ = "0.1.0"

from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.importance import RowImportance
from unmask.data.stream import RowStream
from unmask.evaluation.likelihood import LikelihoodConfig
from unmask.evaluation.locality import LocalityConfig
from unmask.evaluation.tasks import AdditionTask, AnswerTask, ChoiceTask, ReasoningTask, SudokuTask
from unmask.masks import Bernoulli, ExactCount
from unmask.models.denoiser import MaskedDiffusionLM, MaskedOutput
from unmask.models.head import MaskedHead
from unmask.models.lora import LoRA
from unmask.models.pretrained import Pretrained, add_lora, from_pretrained, save_pretrained
from unmask.objectives import ELBO, InverseRate, MaskedMean, RowMean
from unmask.processes import Blockwise, ForwardProcess, IndependentMasking, ProgressiveUnmasking
from unmask.processes.guides import add_entropies, add_order
from unmask.processes.ppots import PPOTS
from unmask.reweighted import CAP, CART, LIFT, PAPL, SyRM
from unmask.sampling import Decoding, Generation, generate
from unmask.schedules import Ramp
from unmask.times import Bell, Beta, Clipped, Uniform
from unmask.token_rates import GIFT, Delimiters, HalfLife
from unmask.training import Trainer, TrainingConfig

__all__ = [
    "CAP",
    "CART",
    "ELBO",
    "GIFT",
    "LIFT",
    "PAPL",
    "PPOTS",
    "AdditionTask",
    "AnswerTask",
    "Bell",
    "Bernoulli",
    "Beta",
    "Blockwise",
    "ChoiceTask",
    "Clipped",
    "Decoding",
    "Delimiters",
    "ExactCount",
    "ForwardProcess",
    "Generation",
    "HalfLife",
    "IndependentMasking",
    "InverseRate",
    "LikelihoodConfig",
    "LoRA",
    "LocalityConfig",
    "MaskedBatch",
    "MaskedDiffusionLM",
    "MaskedHead",
    "MaskedMean",
    "MaskedOutput",
    "Pretrained",
    "ProgressiveUnmasking",
    "Ramp",
    "ReasoningTask",
    "RowImportance",
    "RowMean",
    "RowStream",
    "Scores",
    "SudokuTask",
    "SyRM",
    "TokenBatch",
    "Trainer",
    "TrainingConfig",
    "Uniform",
    "add_entropies",
    "add_lora",
    "add_order",
    "from_pretrained",
    "generate",
    "save_pretrained",
]

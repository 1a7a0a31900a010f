"""Forward processes: where do a row's masks come from?"""

from unmask.config import ours
from unmask.processes.base import ForwardProcess, Masking
from unmask.processes.blockwise import Blockwise
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.mixture import Mixture, MixtureProcess
from unmask.processes.progressive import Chains, ProgressiveProcess, ProgressiveUnmasking

ours(Blockwise, IndependentMasking, Mixture, ProgressiveUnmasking)

__all__ = [
    "Blockwise",
    "Chains",
    "ForwardProcess",
    "IndependentMasking",
    "IndependentProcess",
    "Masking",
    "Mixture",
    "MixtureProcess",
    "ProgressiveProcess",
    "ProgressiveUnmasking",
]

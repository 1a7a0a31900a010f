"""Forward processes: where do a row's masks come from?"""

from unmask.processes.base import ForwardProcess, Masking
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import Chains, ProgressiveProcess, ProgressiveUnmasking

__all__ = [
    "Chains",
    "ForwardProcess",
    "IndependentMasking",
    "IndependentProcess",
    "Masking",
    "ProgressiveProcess",
    "ProgressiveUnmasking",
]

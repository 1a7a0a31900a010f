"""Forward processes: where do a row's masks come from?"""

from unmask.processes.base import ForwardProcess, Masking
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import ProgressiveProcess, ProgressiveUnmasking

__all__ = [
    "ForwardProcess",
    "IndependentMasking",
    "IndependentProcess",
    "Masking",
    "ProgressiveProcess",
    "ProgressiveUnmasking",
]

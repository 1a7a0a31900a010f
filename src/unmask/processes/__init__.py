"""Forward processes: where do a row's masks come from?"""

from unmask.config import ours
from unmask.processes.base import ForwardProcess, Masking, dealt_anew
from unmask.processes.blockwise import Blockwise
from unmask.processes.chains import Chain
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import ProgressiveProcess, ProgressiveUnmasking

ours(Blockwise, IndependentMasking, ProgressiveUnmasking)

__all__ = [
    "Blockwise",
    "Chain",
    "ForwardProcess",
    "IndependentMasking",
    "IndependentProcess",
    "Masking",
    "ProgressiveProcess",
    "ProgressiveUnmasking",
    "dealt_anew",
]

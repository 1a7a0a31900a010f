"""What recipes are made of: data, models, evaluations and maskings by name, as values that a config can hold."""

from unmask.config import ours
from unmask.parts.corpora import CorpusData
from unmask.parts.evaluations import HeldOutAnswers, HeldOutLikelihood, HeldOutRows, HeldOutSequences, NoEvaluation
from unmask.parts.maskings import named_masking
from unmask.parts.models import PretrainedModel, SavedModel, TextModel
from unmask.parts.prompts import PromptData
from unmask.parts.rows import RowsOnDisk
from unmask.parts.sequences import SequenceData
from unmask.parts.sudoku import SudokuData, SudokuModel
from unmask.parts.text import TextData

ours(CorpusData, PromptData, RowsOnDisk, SequenceData, SudokuData, TextData)
ours(PretrainedModel, SavedModel, SudokuModel, TextModel)
ours(HeldOutAnswers, HeldOutLikelihood, HeldOutRows, HeldOutSequences, NoEvaluation)

__all__ = [
    "CorpusData",
    "HeldOutAnswers",
    "HeldOutLikelihood",
    "HeldOutRows",
    "HeldOutSequences",
    "NoEvaluation",
    "PretrainedModel",
    "PromptData",
    "RowsOnDisk",
    "SavedModel",
    "SequenceData",
    "SudokuData",
    "SudokuModel",
    "TextData",
    "TextModel",
    "named_masking",
]

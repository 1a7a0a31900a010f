"""What recipes are made of: data, models, evaluations and maskings by name, as values that a config can hold."""

from unmask.config import ours
from unmask.parts.corpora import CorpusData
from unmask.parts.evaluations import HeldOutLikelihood, NoEvaluation
from unmask.parts.maskings import named_masking
from unmask.parts.models import PretrainedModel, SavedModel, TextModel
from unmask.parts.rows import RowsOnDisk
from unmask.parts.sudoku import SudokuData, SudokuModel
from unmask.parts.text import TextData

ours(CorpusData, RowsOnDisk, SudokuData, TextData)
ours(PretrainedModel, SavedModel, SudokuModel, TextModel)
ours(HeldOutLikelihood, NoEvaluation)

__all__ = [
    "CorpusData",
    "HeldOutLikelihood",
    "NoEvaluation",
    "PretrainedModel",
    "RowsOnDisk",
    "SavedModel",
    "SudokuData",
    "SudokuModel",
    "TextData",
    "TextModel",
    "named_masking",
]

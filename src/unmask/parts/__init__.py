"""What recipes are made of: data, models, evaluations and maskings by name, as values that a config can hold."""

from unmask.config import ours
from unmask.parts.addition import AdditionData, AdditionModel
from unmask.parts.corpora import CorpusData
from unmask.parts.evaluations import HeldOutAnswers, HeldOutLikelihood, HeldOutRows, HeldOutSequences, NoEvaluation
from unmask.parts.finals import GeneratedTexts, LikelihoodBy, OrderLikelihood, TextLikelihood
from unmask.parts.maskings import named_masking
from unmask.parts.models import PretrainedModel, SavedModel, TextModel
from unmask.parts.prompts import PromptData
from unmask.parts.rows import RowsOnDisk
from unmask.parts.sequences import SequenceData
from unmask.parts.sudoku import SudokuData, SudokuModel
from unmask.parts.sums import WorkedSums
from unmask.parts.text import TextData

ours(AdditionData, CorpusData, PromptData, RowsOnDisk, SequenceData, SudokuData, TextData, WorkedSums)
ours(AdditionModel, PretrainedModel, SavedModel, SudokuModel, TextModel)
ours(HeldOutAnswers, HeldOutLikelihood, HeldOutRows, HeldOutSequences, NoEvaluation)
ours(GeneratedTexts, LikelihoodBy, OrderLikelihood, TextLikelihood)

__all__ = [
    "AdditionData",
    "AdditionModel",
    "CorpusData",
    "GeneratedTexts",
    "HeldOutAnswers",
    "HeldOutLikelihood",
    "HeldOutRows",
    "HeldOutSequences",
    "LikelihoodBy",
    "NoEvaluation",
    "OrderLikelihood",
    "PretrainedModel",
    "PromptData",
    "RowsOnDisk",
    "SavedModel",
    "SequenceData",
    "SudokuData",
    "SudokuModel",
    "TextData",
    "TextLikelihood",
    "TextModel",
    "WorkedSums",
    "named_masking",
]

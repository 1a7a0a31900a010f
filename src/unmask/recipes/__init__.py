"""Recipes: one file per experiment, a function that returns a RunConfig."""

from collections.abc import Callable

from unmask.parts import (
    CorpusData,
    HeldOutLikelihood,
    PretrainedModel,
    PromptData,
    RowsOnDisk,
    SequenceData,
    SudokuData,
    SudokuModel,
    TextData,
    TextModel,
)
from unmask.recipes.addresses import smollm2, sotu
from unmask.recipes.own import rows, sequences, sft, text
from unmask.recipes.papers import llada_sft, lm1b, tinygsm
from unmask.recipes.sudoku import sudoku
from unmask.runs.config import RunConfig

OURS = (sudoku, sotu, smollm2, lm1b, tinygsm, llada_sft, sft, text, sequences, rows)
RECIPES: dict[str, Callable[..., RunConfig]] = {recipe.__name__: recipe for recipe in OURS}

__all__ = [
    "RECIPES",
    "CorpusData",
    "HeldOutLikelihood",
    "PretrainedModel",
    "PromptData",
    "RowsOnDisk",
    "RunConfig",
    "SequenceData",
    "SudokuData",
    "SudokuModel",
    "TextData",
    "TextModel",
    "llada_sft",
    "lm1b",
    "rows",
    "sequences",
    "sft",
    "smollm2",
    "sotu",
    "sudoku",
    "text",
    "tinygsm",
]

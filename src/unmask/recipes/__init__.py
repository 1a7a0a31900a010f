"""Recipes: one file per experiment, a function that returns a RunConfig."""

from unmask.parts import (
    CorpusData,
    HeldOutLikelihood,
    PretrainedModel,
    SudokuData,
    SudokuModel,
    TextData,
    TextModel,
)
from unmask.recipes.papers import llada_sft, lm1b, tinygsm
from unmask.recipes.sudoku import sudoku
from unmask.recipes.text import smollm2, sotu
from unmask.runs.config import RunConfig

RECIPES = {recipe.__name__: recipe for recipe in (sudoku, sotu, smollm2, lm1b, tinygsm, llada_sft)}

__all__ = [
    "RECIPES",
    "CorpusData",
    "HeldOutLikelihood",
    "PretrainedModel",
    "RunConfig",
    "SudokuData",
    "SudokuModel",
    "TextData",
    "TextModel",
    "llada_sft",
    "lm1b",
    "smollm2",
    "sotu",
    "sudoku",
    "tinygsm",
]

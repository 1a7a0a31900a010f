"""Recipes: one file per experiment, a function that returns a RunConfig."""

from unmask.recipes.base import RunConfig
from unmask.recipes.sudoku import SudokuData, SudokuModel, sudoku

RECIPES = {recipe.__name__: recipe for recipe in (sudoku,)}

__all__ = ["RECIPES", "RunConfig", "SudokuData", "SudokuModel", "sudoku"]

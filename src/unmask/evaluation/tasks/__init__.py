"""Tasks whose answers are right or wrong: unseen rows are decoded and judged, per stratum, with intervals."""

from unmask.evaluation.tasks.addition import AdditionTask
from unmask.evaluation.tasks.base import Task, wilson
from unmask.evaluation.tasks.sudoku import SudokuTask

__all__ = ["AdditionTask", "SudokuTask", "Task", "wilson"]

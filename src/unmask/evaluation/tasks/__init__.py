"""Tasks whose answers are right or wrong: unseen rows are decoded and judged, per stratum, with intervals."""

from unmask.config import ours
from unmask.evaluation.tasks.addition import AdditionTask
from unmask.evaluation.tasks.answers import AnswerTask, final_answer, same_answer
from unmask.evaluation.tasks.base import DecodingTask, Task, shares, wilson
from unmask.evaluation.tasks.choice import ChoiceTask
from unmask.evaluation.tasks.reasoning import ReasoningTask
from unmask.evaluation.tasks.sudoku import SudokuTask
from unmask.evaluation.tasks.sums import SumsTask
from unmask.evaluation.tasks.text import TextTask

ours(AdditionTask, AnswerTask, ChoiceTask, ReasoningTask, SudokuTask, SumsTask)

__all__ = [
    "AdditionTask",
    "AnswerTask",
    "ChoiceTask",
    "DecodingTask",
    "ReasoningTask",
    "SudokuTask",
    "SumsTask",
    "Task",
    "TextTask",
    "final_answer",
    "same_answer",
    "shares",
    "wilson",
]

"""A Sudoku on the terminal, solved cell by cell."""

from __future__ import annotations

import numpy as np
from rich.console import Group
from rich.text import Text

from unmask.data.sudoku import MASK_TOKEN


def board(puzzle: np.ndarray, answer: np.ndarray, last: np.ndarray | None = None) -> Text:
    """Draw a board: clues bold, answers green, the cells revealed last inverted.

    Args:
        puzzle: [81], 0 for an empty cell.
        answer: [81], the mask token where not yet revealed.
        last: [81] bool.
    """
    text = Text()
    for cell in range(81):
        row, column = divmod(cell, 9)
        if column == 0 and row:
            text.append("\n")
        if column == 0 and row in (3, 6):
            text.append("------+-------+------\n", style="dim")
        elif column in (3, 6):
            text.append("| ", style="dim")
        digit = int(answer[cell])
        if digit == MASK_TOKEN:
            text.append(". ", style="dim")
        elif puzzle[cell]:
            text.append(f"{digit} ", style="bold")
        else:
            new = last is not None and bool(last[cell])
            text.append(str(digit), style="reverse green" if new else "green")
            text.append(" ")
    return text


def story(step: np.ndarray, confidence: np.ndarray, answer: np.ndarray, upto: int, lines: int = 8) -> Group:
    """The last revealed cells, in order: where, which digit, how sure the model was."""
    order = np.argsort(np.where(step < 0, step.max() + 1, step), kind="stable")[: (step >= 0).sum()]
    shown = [cell for cell in order if step[cell] <= upto][-lines:]
    return Group(
        *(
            Text(
                f"{int(step[cell]) + 1:3d}. row {cell // 9 + 1}, column {cell % 9 + 1}: {int(answer[cell])}  "
                f"({confidence[cell]:.1%} sure)"
            )
            for cell in shown
        )
    )

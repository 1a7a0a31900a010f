"""Sudoku: does the decoded grid keep its clues, and is it valid?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.data.stream import RowStream
from unmask.data.sudoku import CELLS, is_solved, load_sudoku, puzzle_of
from unmask.evaluation.tasks.base import DecodingTask
from unmask.evaluation.trace import Example
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.sampling import Decoding, Generation, generate


@dataclass(frozen=True, kw_only=True)
class SudokuTask(DecodingTask):
    """Solve unseen Sudokus; an answer counts if it keeps all clues and is a valid grid.

    Attributes:
        split: "test" (made like the training puzzles, other grids) or "kaidoku" (published, graded).
        form: of a row, as in training: "grid" or "pair".
        clues: least and most clues of the puzzles.
        half: 0 or 1: the first or the last half of each stratum, so that settings can be chosen on one and judged on
            the other. None: all puzzles.
    """

    split: Literal["test", "kaidoku"] = "test"
    form: Literal["grid", "pair"] = "grid"
    clues: tuple[int, int] = (25, 45)
    half: Literal[0, 1] | None = None
    decoding: Decoding = field(default_factory=lambda: Decoding(tokens_per_step=4))

    def load(self, limit: int | None = None) -> Dataset:
        """The first puzzles of each stratum, in equal parts."""
        return load_sudoku(self.split, form=self.form, clues=self.clues, half=self.half, limit=limit)

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """Every clue kept, and every row, column and box holds 1 to 9."""
        return is_solved(tokens[:, -CELLS:], puzzle_of(rows.tokens, rows.maskable))

    def example(self, held_out: Dataset | None = None) -> Example:
        """The puzzle with the fewest clues, as a board."""
        return replace(super().example(), columns=9, exact=True, first=0 if self.form == "grid" else CELLS)

    def solve_one(
        self, model: MaskedDiffusionLM, number: int, on_step: Callable[[int, Any, Any], None] | None = None
    ) -> tuple[np.ndarray, Generation]:
        """Decode one puzzle a cell at a time by the task's policy; returns the puzzle [81] and the generation."""
        dataset = self.load()
        row = RowStream(dataset).rows(torch.tensor([number % len(dataset)])).to(model.device)
        puzzle = puzzle_of(row.tokens, row.maskable)[0]
        one_by_one = replace(self.decoding, tokens_per_step=1, steps=None, schedule="linear", threshold=None)
        return puzzle, generate(model, row, one_by_one, on_step=on_step)

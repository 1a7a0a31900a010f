"""Tasks whose answers are right or wrong: decode unseen rows, report shares with intervals, per stratum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch

from unmask.config import positive_int
from unmask.data.stream import RowStream
from unmask.data.sudoku import is_solved, load_sudoku, puzzle_of
from unmask.masks import ExactCount
from unmask.model import MaskedDiffusionLM
from unmask.objectives import RowMean
from unmask.policies import Policy, resolve
from unmask.processes import IndependentMasking
from unmask.sampling import Generation, generate


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share, (low, high)."""
    interval = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class SudokuTask:
    """Solve unseen Sudokus; an answer counts if it keeps all clues and is a valid grid.

    Attributes:
        split: "test" (made like the training puzzles, other grids) or "kaidoku" (published, graded).
        form: of a row, as in training: "grid" or "pair".
        clues: least and most clues of the puzzles.
        puzzles: how many are solved at each evaluation during training, evenly over the strata.
        final_puzzles: how many at the last evaluation.
        policy: reveal policy of the decoding.
        tokens_per_step: cells revealed at each decoding step.
        batch_size: puzzles decoded together.
    """

    split: Literal["test", "kaidoku"] = "test"
    form: Literal["grid", "pair"] = "grid"
    clues: tuple[int, int] = (25, 45)
    puzzles: int = 250
    final_puzzles: int = 1000
    policy: str | Policy = "confidence"
    tokens_per_step: int = 4
    batch_size: int = 250

    def __post_init__(self) -> None:
        for name in ("puzzles", "final_puzzles", "tokens_per_step", "batch_size"):
            positive_int(name, getattr(self, name))
        resolve(self.policy)

    def start(self) -> Callable[[MaskedDiffusionLM, bool], dict[str, Any]]:
        """Load the puzzles; return the function that a `Trainer` calls as evaluate(model, last)."""
        curve = load_sudoku(self.split, form=self.form, clues=self.clues, limit=self.puzzles)
        final = load_sudoku(self.split, form=self.form, clues=self.clues, limit=self.final_puzzles)
        return lambda model, last: self.evaluate(model, final if last else curve)

    def evaluate(self, model: MaskedDiffusionLM, dataset: Any) -> dict[str, Any]:
        """Solve a data set's puzzles.

        Returns:
            "solved": share, "interval": its 95% Wilson interval, "puzzles": n, "strata": the same three
            for each stratum, "loss": row-mean nll in nats under noise that is the same for every model and
            step, "tokens_per_second" and "forwards_per_token" of the decoding.
        """
        device = next(model.parameters()).device
        rows = RowStream(dataset).rows(torch.arange(len(dataset))).to(device)
        parts = [
            generate(model, rows[start : start + self.batch_size], self.policy, self.tokens_per_step)
            for start in range(0, len(rows), self.batch_size)
        ]
        answers = torch.cat([part.tokens for part in parts])[:, -81:]
        solved = is_solved(answers, puzzle_of(rows.tokens, rows.maskable))
        strata = np.array(dataset["stratum"])
        revealed = sum(part.revealed for part in parts)
        return {
            **_share(solved),
            "strata": {str(name): _share(solved[strata == name]) for name in np.unique(strata)},
            "loss": self._loss(model, dataset, device),
            "tokens_per_second": revealed / sum(part.seconds for part in parts),
            "forwards_per_token": sum(part.forwards for part in parts) / revealed,
        }

    def _loss(self, model: MaskedDiffusionLM, dataset: Any, device: torch.device) -> float:
        masking, objective = IndependentMasking(mask=ExactCount(), coupling="stratified"), RowMean()
        batch = masking.start(RowStream(dataset), len(dataset), seed=0, device=device).draw()
        weights = objective.weights(batch) / objective.normaliser(batch).float()
        with torch.no_grad():
            pieces = [slice(i, i + self.batch_size) for i in range(0, len(batch), self.batch_size)]
            return float(sum(model(batch[piece], weights[piece]).loss for piece in pieces))

    def solve_one(
        self, model: MaskedDiffusionLM, number: int, on_step: Callable[[int, Any, Any], None] | None = None
    ) -> tuple[np.ndarray, Generation]:
        """Decode one puzzle a cell at a time; returns the puzzle [81] and the generation."""
        dataset = load_sudoku(self.split, form=self.form, clues=self.clues)
        row = RowStream(dataset).rows(torch.tensor([number % len(dataset)])).to(next(model.parameters()).device)
        puzzle = puzzle_of(row.tokens, row.maskable)[0]
        return puzzle, generate(model, row, self.policy, tokens_per_step=1, on_step=on_step)


def _share(solved: np.ndarray) -> dict[str, Any]:
    count, n = int(solved.sum()), len(solved)
    return {"solved": count / n, "interval": wilson(count, n), "puzzles": n}

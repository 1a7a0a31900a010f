"""Sudokus that are judged in two halves, so that no setting is chosen on the puzzles that judge it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from unmask.evaluation.tasks import SudokuTask


@dataclass(frozen=True, kw_only=True)
class HalfOfSudokus(SudokuTask):
    """The first or the last unseen puzzles of each of the recipe's strata.

    Attributes:
        half: 0, for screening, or 1, for what is claimed.
    """

    half: int
    clues: tuple[int, int] = (29, 45)

    def load(self, limit: int | None = None) -> Dataset:
        """At most `limit` puzzles of the half, in equal parts from the strata."""
        rows = super().load()
        stratum = np.array(rows["stratum"])
        places = [np.flatnonzero(stratum == name) for name in np.unique(stratum)]
        halves = [np.array_split(place, 2)[self.half] for place in places]
        each = None if limit is None else limit // len(halves)
        return rows.select(np.concatenate([half[:each] for half in halves]))

"""Worked sums as the data of a run."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset

from unmask.data.sums import MADE, sums_rows
from unmask.parts.text import spread


@dataclass(frozen=True)
class WorkedSums:
    """Questions with worked answers to train on, as characters (`unmask.data.sums`)."""

    terms: int = 4
    """Of a sum."""
    questions: int = MADE
    """How many are made; a tenth of them is held out, and a tenth is asked by `SumsTask`."""

    def load(self) -> Dataset:
        """The training questions."""
        return sums_rows(self.terms, "train", self.questions)

    def held_out(self) -> Dataset:
        """Questions for what measures the model during training."""
        return spread(sums_rows(self.terms, "validation", self.questions), 256)

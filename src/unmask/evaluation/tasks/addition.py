"""Addition: is every digit of the sum right? Strata are the lengths of the longest carry chain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from datasets import Dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.data.arithmetic import EQUALS_TOKEN, PLUS_TOKEN, answer_of, is_correct, load_addition
from unmask.evaluation.tasks.base import DecodingTask
from unmask.evaluation.trace import Example


@dataclass(frozen=True, kw_only=True)
class AdditionTask(DecodingTask):
    """Add unseen pairs of numbers; an answer counts if every digit is right.

    The decoding order matters here (The Confidence Shortcut, arXiv 2605.29123): compare the policies "confidence",
    "random" and "right_to_left" ("left_to_right" where the answer is written least significant digit first).

    Attributes:
        digits: of both numbers, as in training.
        order: in which the answer is written, as in training.
        carry: least and most length of the longest carry chain, each equally often; None: half of the pairs
            uniform, see `load_addition`.
        seed: of the pairs.
    """

    digits: int = 8
    order: Literal["most_significant_first", "least_significant_first"] = "most_significant_first"
    carry: tuple[int, int] | None = None
    seed: int = 0

    def load(self, limit: int | None = None) -> Dataset:
        """The pairs: any number of them can be drawn, by default `final_puzzles`."""
        rows = self.final_puzzles if limit is None else limit
        return load_addition(
            "test", digits=self.digits, rows=rows, seed=self.seed, order=self.order, carry=self.carry
        )

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """The whole answer."""
        return is_correct(answer_of(tokens), rows.tokens)

    def word(self, token: int) -> str:
        """Digits, + and =."""
        return {PLUS_TOKEN: "+", EQUALS_TOKEN: "="}.get(token, str(token))

    def example(self, held_out: Dataset | None = None) -> Example:
        """The first pair."""
        return replace(super().example(), exact=True)

"""Worked sums of reasoning-gym as rows and as a task; a question's content alone decides what it is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from experiments.parts import questions
from unmask import TokenBatch
from unmask.data.documents import split_of
from unmask.evaluation.tasks.answers import final_answer
from unmask.evaluation.tasks.base import DecodingTask

MADE = 100_000
"""Questions that are made, a tenth of which no run is trained on."""


@lru_cache(maxsize=4)
def _sums(terms: int) -> list[dict[str, str]]:
    return questions.chain_sums(MADE, seed=1, terms=terms)


@dataclass(frozen=True)
class WorkedSums:
    """Questions with worked answers to train on.

    Attributes:
        terms: of a sum.
    """

    terms: int = 4

    def load(self) -> Dataset:
        """The training questions."""
        return self._rows("train")

    def held_out(self) -> Dataset:
        """Questions for what measures the model during training."""
        return self._rows("validation").select(range(256))

    def _rows(self, split: str) -> Dataset:
        made = [example for example in _sums(self.terms) if split_of(example["question"]) == split]
        return questions.rows(made, questions.alphabet(), sum(questions.lengths(self.terms)) + 1, "eos_as_padding")


@dataclass(frozen=True, kw_only=True)
class SumsTask(DecodingTask):
    """Work out unseen sums; the final number counts.

    Attributes:
        terms: of a sum.
    """

    terms: int = 4

    def load(self, limit: int | None = None) -> Dataset:
        """Unseen questions, all different."""
        unseen: Iterable[dict[str, str]] = (e for e in _sums(self.terms) if split_of(e["question"]) == "test")
        asked = list({example["question"]: example for example in unseen}.values())[:limit]
        tokenizer, length = questions.alphabet(), questions.lengths(self.terms)[1]
        rows: list[dict[str, Any]] = []
        for example in asked:
            prompt = tokenizer.encode(questions.PROMPT.format(**example)).tolist()
            answer = tokenizer.encode(example["answer"]).tolist()
            answer += [tokenizer.eos_token_id] * (length - len(answer))
            maskable = [False] * len(prompt) + [True] * length
            rows.append({"tokens": prompt + answer, "maskable": maskable, "stratum": "all", **example})
        return Dataset.from_list(rows)

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """The same final number."""
        tokenizer, found = questions.alphabet(), []
        for made in tokens[rows.maskable].view(len(tokens), -1).tolist():
            end = made.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in made else len(made)
            found.append(final_answer(tokenizer.decode(made[:end])))
        return np.array([a == final_answer(b) for a, b in zip(found, dataset["answer"], strict=True)])

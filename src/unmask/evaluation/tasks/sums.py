"""Unseen sums, worked out by decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.data.documents import split_of
from unmask.data.sums import MADE, PROMPT, sums_lengths, sums_tokenizer, worked_sums
from unmask.evaluation.tasks.answers import final_answer
from unmask.evaluation.tasks.base import DecodingTask


@dataclass(frozen=True, kw_only=True)
class SumsTask(DecodingTask):
    """Work out unseen sums of `unmask.data.sums`; the final number counts.

    Attributes:
        terms: of a sum, as in training.
        questions: how many are made, as in training.
    """

    terms: int = 4
    questions: int = MADE

    def load(self, limit: int | None = None) -> Dataset:
        """Unseen questions, all different."""
        made = worked_sums(self.terms, self.questions)
        unseen = (example for example in made if split_of(example["question"]) == "test")
        asked = list({example["question"]: example for example in unseen}.values())[:limit]
        tokenizer, length, rows = sums_tokenizer(), sums_lengths(self.terms)[1], []
        for example in asked:
            prompt = tokenizer.encode(PROMPT.format(**example)).tolist()
            answer = tokenizer.encode(example["answer"]).tolist()
            tokens = prompt + answer + [tokenizer.eos_token_id] * (length - len(answer))
            maskable = [False] * len(prompt) + [True] * length
            rows.append({"tokens": tokens, "maskable": maskable, "stratum": "all", **example})
        return Dataset.from_list(rows)

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """The same final number."""
        tokenizer = sums_tokenizer()
        made = (tokenizer.first_text(row) for row in tokens[rows.maskable].view(len(tokens), -1).tolist())
        pairs = zip(made, dataset["answer"], strict=True)
        return np.array([final_answer(text) == final_answer(answer) for text, answer in pairs])

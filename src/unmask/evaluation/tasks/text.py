"""Questions and answers as text: rows of tokens, the answer masked, and the decoded answer as text again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.config import positive_int, require
from unmask.data.columns import check_column
from unmask.data.documents import JSON_LINES, json_lines
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.tasks.base import DecodingTask
from unmask.evaluation.trace import Example


@dataclass(frozen=True, kw_only=True)
class TextTask(DecodingTask):
    """Answer questions in words; an answer ends with the end-of-text token. A new one defines `examples` and `judge`.

    Attributes:
        tokenizer: folder with tokenizer.json and tokenizer_config.json, as training used it.
        prompt: what the model is shown, with "{question}" in it.
        answer_length: tokens of an answer, end-of-text tokens included; `loss` cuts true answers to it.
    """

    tokenizer: str
    prompt: str = "{question}\n"
    answer_length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("answer_length", self.answer_length)
        check_prompt(self.prompt)

    def examples(self, limit: int | None) -> Iterable[dict[str, Any]]:
        """At most `limit` questions: "question", "answer" and "stratum", all text, and what `judge` needs."""
        raise NotImplementedError

    def judge(self, answers: list[str], dataset: Dataset) -> list[bool]:
        """Tell which answers to the questions of a data set that `load` made are right."""
        raise NotImplementedError

    def load(self, limit: int | None = None) -> Dataset:
        """The questions as rows: prompt, then `answer_length` maskable positions."""
        tokenizer, rows = self._tokenizer, []
        for example in self.examples(limit):
            prompt = prompt_tokens(tokenizer, self.prompt, example["question"])
            answer = tokenizer.encode(example["answer"]).tolist()[: self.answer_length]
            answer += [tokenizer.eos_token_id] * (self.answer_length - len(answer))
            maskable = [False] * len(prompt) + [True] * len(answer)
            rows.append({"tokens": prompt + answer, "maskable": maskable, **example})
        require(len(rows) > 0, "there is no question")
        return Dataset.from_list(rows)

    @property
    def ends(self) -> Mapping[str, Any]:
        """The tokenizer's: its end-of-text token, where that is one of its own, and what it cannot write."""
        return self._tokenizer.ends

    def example(self, held_out: Dataset | None = None) -> Example:
        """The first question."""
        return replace(super().example(), word=self._tokenizer.word)

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """Judge the text up to the first end-of-text token."""
        made = tokens[rows.maskable].view(len(tokens), -1).tolist()
        return np.array(self.judge([self._tokenizer.first_text(answer) for answer in made], dataset))

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer.load(self.tokenizer)


def check_prompt(prompt: str) -> None:
    """Raise ValueError for a prompt without a place for the question."""
    require("{question}" in prompt, f'prompt must hold "{{question}}", got {prompt!r}')


def prompt_tokens(tokenizer: TextTokenizer, prompt: str, question: str) -> list[int]:
    """The tokens that the model is shown, the tokenizer's prefix first."""
    return [*tokenizer.prefix, *tokenizer.encode(prompt.replace("{question}", question)).tolist()]


def read_rows(source: str, subset: str | None, split: str, columns: tuple[str, ...], limit: int | None) -> Dataset:
    """Read the first `limit` rows of a JSON Lines file, or of a split of a Hugging Face data set.

    Raises:
        ValueError: for a file that does not exist; with file and line for what `unmask.data.load_documents` refuses
            in a file; or for a data set without one of the columns.
    """
    if source.endswith(JSON_LINES):
        require(Path(source).is_file(), f"cannot read questions from {source}: there is no such file")
        return Dataset.from_list(list(islice(json_lines(Path(source), columns), limit)))
    rows: Any = load_dataset(source, subset, split=split)
    for column in columns:
        check_column(source, column, rows.column_names)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))

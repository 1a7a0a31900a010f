"""Final answers, as in GSM8K: a text is worked out to an end, and the end alone is compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from datasets import Dataset

from unmask.evaluation.tasks.text import TextTask, read_rows

MARK = "####"
# A minus is a sign unless something to take away from stands before it.
_NUMBER = re.compile(r"((?<![\w.)])[-−])?\$?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def final_answer(text: str) -> str | None:
    """The answer that a text ends with, in a normal form that equal answers share.

    After the last "####" it is the first number of that line, or the line itself where it has none; in a text
    without the mark the last number. Numbers lose currency and percent signs, separators of thousands and
    trailing zeros ("$1,200.50" is "1200.5"); words lose case, a full stop and extra white space. None where there
    is no answer.
    """
    if MARK in text:
        line = text.rpartition(MARK)[2].strip().partition("\n")[0]
        number = _NUMBER.search(line)
        words = " ".join(line.casefold().split()).rstrip(".")
        return _normal(number) if number else words or None
    numbers = list(_NUMBER.finditer(text))
    return _normal(numbers[-1]) if numbers else None


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same: as numbers where both are numbers, else word for word.

    Case and white space do not count, and "$1,200.50" is the number 1200.5.
    """
    numbers = [_NUMBER.fullmatch(text.strip()) for text in (a, b)]
    first, second = (" ".join(text.casefold().split()) for text in (a, b))
    return first == second or (all(numbers) and len({_normal(number) for number in numbers if number}) == 1)


def _normal(number: re.Match[str]) -> str:
    text = format(Decimal(number[2].replace(",", "")), "f")  # Decimal's own arithmetic would round to 28 digits
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"-{text}" if number[1] and text != "0" else text


@dataclass(frozen=True, kw_only=True)
class AnswerTask(TextTask):
    """Word problems whose final answer counts, as in GSM8K: see `final_answer`. Strata are lines of working.

    Attributes:
        source: a JSON Lines file, or the name of a Hugging Face data set; the true answer may be a worked one.
        subset: of the Hugging Face data set, "main" for GSM8K.
        split: of the Hugging Face data set.
        columns: of question and answer.
    """

    source: str
    subset: str | None = None
    split: str = "test"
    columns: tuple[str, str] = ("question", "answer")
    answer_length: int = 256

    def examples(self, limit: int | None) -> Iterable[dict[str, Any]]:
        """The first questions of the source.

        Raises:
            ValueError: where a question is lacking, or a true answer has no final answer.
        """
        for number, row in enumerate(read_rows(self.source, self.subset, self.split, self.columns, limit).to_list()):
            # Numbers are written out, as a template of training writes them.
            question, answer = ("" if row[name] is None else str(row[name]) for name in self.columns)
            if not question or final_answer(answer) is None:
                lacking = f"final answer: {answer!r}" if question else "question"
                raise ValueError(f"row {number} of {self.source} has no {lacking}")
            lines = sum(bool(line.strip()) for line in answer.partition(MARK)[0].splitlines())
            yield {
                "question": question,
                "answer": answer,
                "stratum": f"{min(lines, 8)}{'+' if lines >= 8 else ''} lines" if MARK in answer else "all",
            }

    def judge(self, answers: list[str], dataset: Dataset) -> list[bool]:
        """The same final answer."""
        return [final_answer(a) == final_answer(b) for a, b in zip(answers, dataset["answer"], strict=True)]

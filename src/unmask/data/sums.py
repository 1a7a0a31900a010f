"""Sums worked out step by step, as text: "9 + 3 - 4 =" and "9+3=12 12-4=8". A small task that has to be reasoned.

The questions are reasoning-gym's (`pip install "unmask[reasoning]"`); a question's content alone decides whether it
is trained on or asked.
"""

from __future__ import annotations

from functools import lru_cache

from datasets import Dataset

from unmask.config import positive_int, require
from unmask.data.documents import Split, split_of
from unmask.data.supervised import prompt_rows
from unmask.data.tokenizers import TextTokenizer, character_tokenizer

MADE = 100_000
"""Questions that are made; two tenths of them no run is trained on."""
PROMPT = "{question}\n"
APART = 1_000_000
"""Between the seeds given to reasoning-gym: its question i of seed s is its question i - 1 of seed s + 1."""


def sums_lengths(terms: int) -> tuple[int, int]:
    """Characters of a question, filled up so that all rows are laid out alike, and of its worked answer and end."""
    return 4 * terms - 1, 10 * terms - 14


def sums_tokenizer() -> TextTokenizer:
    """One token for each character of reasoning-gym's questions and answers."""
    return character_tokenizer(["".join(map(chr, range(32, 127))) + "\n€£¥•×÷₹−–’"])


@lru_cache(maxsize=4)
def worked_sums(terms: int, count: int = MADE, seed: int = 1) -> tuple[dict[str, str], ...]:
    """Sums and differences of `terms` digits, at least three: "question" and "answer", each with every step.

    Raises:
        ValueError: where reasoning-gym is not installed.
    """
    positive_int("terms", terms, least=3)
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('reasoning-gym is not installed: pip install "unmask[reasoning]"') from None
    made = reasoning_gym.create_dataset(
        "chain_sum", size=count, seed=seed * APART, min_terms=terms, max_terms=terms, min_digits=1, max_digits=1
    )
    return tuple(_worked(entry["question"].rpartition(": ")[2], sums_lengths(terms)[0]) for entry in made)


def _worked(question: str, width: int) -> dict[str, str]:
    first, *rest = question.removesuffix("=").split()
    value, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = value + int(term) if sign == "+" else value - int(term)
        steps.append(f"{value}{sign}{term}={after}")
        value = after
    return {"question": question.rjust(width), "answer": " ".join(steps)}


def sums_rows(terms: int, split: Split, count: int = MADE) -> Dataset:
    """Rows of the questions of a part, whose worked answer is learnt."""
    made = [example for example in worked_sums(terms, count) if split_of(example["question"]) == split]
    require(len(made) > 0, f"of {count} questions none is for {split!r}: a tenth is, so ask for more of them")
    return prompt_rows(
        Dataset.from_list(made),
        sums_tokenizer(),
        length=sum(sums_lengths(terms)) + 1,
        prompt=PROMPT,
        response="{answer}",
        ending="eos_as_padding",
    )

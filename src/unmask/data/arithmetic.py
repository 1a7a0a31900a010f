"""Addition, made on demand: rows "a+b=c" whose difficulty, the longest carry chain, is known.

A digit of a sum depends on the digits to its right only as far as a carry travels. A *carry chain* starts at a
place whose two digits give 10 or more and goes on through every next place whose two digits give exactly 9,
where a carry passes from end to end; its length is the number of carries in it. Pairs drawn uniformly hardly
ever have a long one (of eight digits one pair in 450 has a chain above 3), so half of all rows are drawn to
have a given one.

A row has fixed width: for D digits, `a` (D tokens), PLUS_TOKEN, `b` (D), EQUALS_TOKEN and the answer (D + 1),
together 3 D + 3, all padded with zeros on the left. A digit's token is the digit; `MASK_TOKEN` never occurs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from unmask import noise
from unmask.config import check_name
from unmask.data.columns import list_column, to_numpy

VOCAB_SIZE = 13
PLUS_TOKEN, EQUALS_TOKEN, MASK_TOKEN = 10, 11, 12

_SPLITS = ("train", "test")

# The pairs of digits, [n, 2], that a place may have.
_PAIRS = np.stack(np.divmod(np.arange(100), 10), axis=1)
_ANY, _STARTS, _PASSES, _STARTS_NOT, _PASSES_NOT = range(5)
_CHOICES = [_PAIRS, *(_PAIRS[keep] for s in [_PAIRS.sum(axis=1)] for keep in (s > 9, s == 9, s < 10, s != 9))]


def load_addition(
    split: Literal["train", "test"],
    *,
    digits: int = 8,
    rows: int = 50_000,
    seed: int = 0,
    order: Literal["most_significant_first", "least_significant_first"] = "most_significant_first",
    carry: tuple[int, int] | None = None,
) -> Dataset:
    """Make addition rows as an in-memory dataset. The same call always gives the same rows.

    Every second row is a pair of numbers below ``10**digits`` drawn uniformly; the others are drawn to have
    a longest carry chain of 0, 1, ..., `digits` in turn. Pairs are drawn with replacement. A hash of the
    unordered pair {a, b} decides its split (one in ten is a test pair), so for all seeds and arguments no
    pair of "test" occurs in "train", nor with its numbers exchanged.

    Args:
        split: "train" or "test", which differ in nothing else.
        digits: D, the digits of a and b, 2 to 18.
        rows: number of rows.
        seed: seed of the draw.
        order: how the answer is written; a and b always start with their most significant digit. The pairs
            drawn are the same in both orders.
        carry: ``(least, most)``, both inclusive: draw every row to have a longest carry chain in this range,
            each length equally often, and none uniformly.

    Returns:
        Rows with the columns

        - ``tokens``: the clean row, ``int8 [3 D + 3]``.
        - ``maskable``: ``bool [3 D + 3]``, True on the D + 1 tokens of the answer.
        - ``carry``: the length of the longest carry chain, 0 to D.
        - ``stratum``: its range as text, one of `strata_names`; of 8 digits "0-2", "3-4", "5-6" or "7+".

    Raises:
        ValueError: for an unknown split or order, or digits, rows or a carry range that cannot be.
    """
    check_name("split", split, _SPLITS)
    check_name("order", order, ("most_significant_first", "least_significant_first"))
    if not 2 <= digits <= 18:
        raise ValueError(f"digits must be 2 to 18, got {digits}")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    number = np.arange(rows)
    if carry is None:
        wanted = np.where(number % 2 == 0, -1, number // 2 % (digits + 1))
    else:
        least, most = carry
        if not 0 <= least <= most <= digits:
            raise ValueError(f"carry must be (least, most) within 0 to {digits}, the number of digits; got {carry}")
        wanted = least + number % (most - least + 1)

    a, b = _draw(np.random.default_rng([seed, _SPLITS.index(split)]), wanted, digits, split)
    answer = _add(a, b)
    if order == "least_significant_first":
        answer = answer[:, ::-1]
    plus, equals = (np.full((rows, 1), token) for token in (PLUS_TOKEN, EQUALS_TOKEN))
    tokens = np.concatenate([a, plus, b, equals, answer], axis=1)
    maskable = np.broadcast_to(np.arange(tokens.shape[1]) >= 2 * digits + 2, tokens.shape)
    chains = longest_carry_chain(a, b)
    table = {
        "tokens": list_column(tokens.astype(np.int8)),
        "maskable": list_column(maskable),
        "carry": pa.array(chains.astype(np.int16)),
        "stratum": pa.array(np.array(strata_names(digits))[np.searchsorted(_last_of_strata(digits), chains)]),
    }
    return Dataset(pa.table(table))


def longest_carry_chain(a, b) -> np.ndarray:
    """Measure the longest carry chain of a sum (see the module's text).

    Args:
        a: Digits ``[..., D]``, most significant first, NumPy or torch.
        b: Digits of the same shape.

    Returns:
        A NumPy integer array ``[...]`` of numbers 0 (no carry) to D.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b = to_numpy(a), to_numpy(b)
    if a.shape != b.shape or a.ndim == 0:
        raise ValueError(f"a and b must have one shape [..., D], got {a.shape} and {b.shape}")
    chain = longest = np.zeros(a.shape[:-1], dtype=np.int64)
    for place in reversed(range(a.shape[-1])):
        total = a[..., place] + b[..., place]
        chain = np.where(total > 9, 1, np.where((total == 9) & (chain > 0), chain + 1, 0))
        longest = np.maximum(longest, chain)
    return longest


def strata_names(digits: int) -> list[str]:
    """Name the ranges of carry-chain lengths, shortest first: about quarters of 0 to `digits`."""
    last = [-1, *_last_of_strata(digits)]
    names = [f"{low + 1}-{high}" if high > low + 1 else f"{high}" for low, high in pairwise(last)]
    return [*names, f"{last[-1] + 1}+"]


def answer_of(tokens) -> np.ndarray:
    """Give the answer in a row, in the order in which it is written.

    Args:
        tokens: Integers ``[..., 3 D + 3]``, NumPy or torch: clean, masked or sampled rows.

    Returns:
        A NumPy integer array ``[..., D + 1]``.

    Raises:
        ValueError: if this is not the shape, or a row does not have its signs where they belong.
    """
    tokens = to_numpy(tokens)
    length = tokens.shape[-1] if tokens.ndim else 0
    if length < 9 or length % 3:
        raise ValueError(f"an addition row has 3 D + 3 tokens for D digits, got shape {tokens.shape}")
    width = length // 3
    if (tokens[..., width - 1] != PLUS_TOKEN).any() or (tokens[..., 2 * width - 1] != EQUALS_TOKEN).any():
        raise ValueError(f"a row of {length} tokens must have '+' at {width - 1} and '=' at {2 * width - 1}")
    return tokens[..., 2 * width :]


def is_correct(answer, row) -> np.ndarray:
    """Tell which answers are right in every digit.

    Args:
        answer: Integers ``[..., D + 1]``, NumPy or torch, in the order of the row's own answer. Tokens other
            than digits make an answer wrong.
        row: Clean rows, integers ``[..., 3 D + 3]``. Leading dimensions broadcast against `answer`'s, so
            several answers to one row need no copies of it.

    Returns:
        A NumPy bool array ``[...]``.

    Raises:
        ValueError: if a shape does not fit, or `row` is not an addition row with a complete answer.
    """
    answer, truth = to_numpy(answer), answer_of(row)
    if truth.size and (truth.min() < 0 or truth.max() > 9):
        raise ValueError("row must be clean, with digits in its answer: the true answer is read from it")
    if answer.ndim == 0 or answer.shape[-1] != truth.shape[-1]:
        raise ValueError(f"answer must have shape [..., {truth.shape[-1]}], got {answer.shape}")
    try:
        return (answer == truth).all(axis=-1)
    except ValueError:
        raise ValueError(f"answer {answer.shape} and row {truth.shape} do not match; one row an answer") from None


def _last_of_strata(digits: int) -> list[int]:
    """The last length of each stratum but the longest."""
    return sorted({-(-digits * quarter // 4) for quarter in (1, 2, 3)} - {digits})


def _draw(rng: np.random.Generator, wanted: np.ndarray, digits: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of the split, digits [n, D] each, with the wanted longest chains [n] (-1: any)."""
    pairs = np.empty((len(wanted), digits, 2), dtype=np.int64)
    missing = np.arange(len(wanted))
    while len(missing):
        drawn = _propose(rng, wanted[missing], digits)
        a, b = drawn[..., 0], drawn[..., 1]
        fits = (wanted[missing] < 0) | (longest_carry_chain(a, b) == wanted[missing])
        fits &= _is_test(a, b) == (split == "test")
        pairs[missing[fits]] = drawn[fits]
        missing = missing[~fits]
    return pairs[..., 0], pairs[..., 1]


def _propose(rng: np.random.Generator, wanted: np.ndarray, digits: int) -> np.ndarray:
    """Draw digit pairs [n, D, 2] with a chain of exactly the wanted length somewhere.

    Where the chain starts is uniform; the other places are drawn freely and may hold a longer one.
    """
    place = np.arange(digits)[::-1]  # the place value of each column
    start = (rng.random(len(wanted)) * (digits - wanted + 1)).astype(np.int64)[:, None]
    length = wanted[:, None]
    kind = np.full((len(wanted), digits), _ANY)
    kind[(length > 0) & (place == start)] = _STARTS
    kind[(length > 0) & (place > start) & (place < start + length)] = _PASSES
    kind[(length > 0) & (place == start + length)] = _PASSES_NOT
    kind[np.broadcast_to(length == 0, kind.shape)] = _STARTS_NOT
    choice = rng.random(kind.shape)
    pairs = np.empty((*kind.shape, 2), dtype=np.int64)
    for k, choices in enumerate(_CHOICES):
        here = kind == k
        pairs[here] = choices[(choice[here] * len(choices)).astype(np.int64)]
    return pairs


def _is_test(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tell which pairs of digit rows [n, D] belong to the test split, whatever the order of the two."""
    value = 10 ** np.arange(a.shape[1], dtype=np.int64)[::-1]
    a, b = a @ value, b @ value
    pair = torch.from_numpy(np.minimum(a, b)), torch.from_numpy(np.maximum(a, b))
    return (noise.hashes(*pair) % 10 == 0).numpy()


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Add digits [n, D], most significant first, to digits [n, D + 1]."""
    total = np.concatenate([np.zeros_like(a[:, :1]), a + b], axis=1)
    for place in range(total.shape[1] - 1, 0, -1):
        total[:, place - 1] += total[:, place] // 10
    return total % 10

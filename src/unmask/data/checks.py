"""What rows must be to be trained on, and whether held-out rows are among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from unmask.data.columns import check_dataset
from unmask.data.stream import CARRIED, pad


def shared_rows(held_out: datasets.Dataset, rows: datasets.Dataset, chunk: int = 10_000) -> int:
    """How many rows of one data set occur in another too, token for token."""

    def keys(of: datasets.Dataset) -> Iterator[bytes]:
        view = of.select_columns(["tokens"]).with_format("numpy")
        for start in range(0, len(view), chunk):
            yield from (np.asarray(row, dtype=np.int64).tobytes() for row in view[start : start + chunk]["tokens"])

    wanted = list(keys(held_out))
    found = set(wanted).intersection(keys(rows))
    return sum(key in found for key in wanted)


def check_whole(rows: Any, name: str, first: int, of: str) -> None:
    """Raise ValueError for a null or a fraction, naming the row; numpy would make another number or a flag of it.

    Args:
        rows: of a column, as numpy has them.
        name: of the column.
        first: number of the first row.
        of: what messages call the data set.
    """
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "iub":
        return
    for number, row in enumerate(rows, first):
        if not _is_whole(row):
            raise ValueError(f"row {number} of {of} holds a null, or no whole number, in `{name}`")


def _is_whole(row: Any) -> bool:
    """Whether a row has a whole number or a flag in each place. Beside nulls, numpy has numbers as floats."""
    if row is None:
        return False
    values = np.asarray(row)
    if values.dtype.kind == "f":
        return bool((values == np.trunc(values)).all())
    return values.dtype.kind != "O" or all(value is not None for value in values)


def check_rows(
    dataset: datasets.Dataset,
    mask_token_id: int,
    vocab_size: int,
    shifted: bool = False,
    longest: int | None = None,
    unused: Tensor | None = None,
    chunk: int = 10_000,
    first: int = 0,
    of: str = "the data set",
) -> tuple[int, int]:
    """Look through a whole data set before training: every row must be trainable.

    Args:
        dataset: with `tokens` and `maskable`.
        mask_token_id: of the model.
        vocab_size: of the model.
        shifted: the model's first position cannot be predicted.
        longest: the model's positions, if it has so many.
        unused: ids that no token has.
        chunk: rows looked at together.
        first: number of the data set's first row, where it is a part of another.
        of: what messages call the data set.

    Returns:
        The number of tokens of the shortest row and of the longest.

    Raises:
        ValueError: for a data set without rows; naming the first row whose columns differ in length, or that has no
            maskable position, holds the mask token, a token outside the vocabulary or one of `unused`, is longer than
            the model's positions, or, for a shifted model, has a maskable first position.
    """
    check_dataset(dataset)
    if len(dataset) == 0:
        raise ValueError(f"{of} is empty")
    carried = [name for name in CARRIED if name in dataset.column_names]
    view = dataset.select_columns(["tokens", "maskable", *carried]).with_format("numpy")
    lengths = []
    for start in range(0, len(view), chunk):
        columns = view[start : start + chunk]
        for name in ("tokens", "maskable"):
            check_whole(columns[name], name, first + start, of)
        tokens, real = pad(columns["tokens"], np.int64)
        for name in ("maskable", *carried):
            counts = torch.tensor([0 if row is None else len(row) for row in columns[name]])
            if (wrong := counts != real.sum(1)).any():
                raise ValueError(
                    f"row {first + start + int(wrong.nonzero()[0])} of {of} has `tokens` and `{name}` of different "
                    "length"
                )
        maskable, _ = pad(columns["maskable"], np.bool_)
        problems = {
            "has no maskable position: drop such rows": ~maskable.any(1),
            f"already holds the mask token {mask_token_id}: choose a free token": (tokens == mask_token_id) & real,
            "holds a token below 0": tokens < 0,
            f"holds a token outside the vocabulary of {vocab_size}: another tokenizer than the model's made it": (
                tokens >= vocab_size
            ),
        }
        if unused is not None:
            what = "holds an id that no token has, and the model gives no probability"
            problems[what] = torch.isin(tokens, unused.cpu()) & real
        if longest is not None:
            problems[f"is longer than the model's {longest} positions (--data.length, --model.positions)"] = (
                real.sum(1) > longest
            )
        if shifted:
            what = "has a maskable first position, which a shifted model cannot predict: "
            what += "prepend a BOS token, or --data.first-given"
            problems[what] = maskable[:, :1].any(1)
            if "document" in carried:
                begins = pad(columns["document"], np.int64)[0].diff(dim=1) != 0
                what = "has a document whose first token is maskable, which a shifted model cannot predict: "
                problems[what + "let the tokenizer begin texts with a BOS token"] = begins & maskable[:, 1:]
        for what, where in problems.items():
            where = where.any(1) if where.dim() == 2 else where
            if where.any():
                raise ValueError(f"row {first + start + int(where.nonzero()[0])} of {of} {what}")
        lengths += [int(real.sum(1).min()), tokens.shape[1]]
    return min(lengths), max(lengths)

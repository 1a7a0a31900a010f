"""RowStream: an endless, sharded, reshuffled sequence of rows whose whole state is one integer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from unmask import noise
from unmask.batch import TokenBatch
from unmask.data.ahead import Ahead
from unmask.data.columns import check_dataset
from unmask.data.importance import RowImportance, RowScales
from unmask.distributed import gather_rows
from unmask.kinds import kinds_checked


class RowStream:
    """Deal the rows of a data set to the ranks of a run, epoch after epoch, each in a new order.

    The stream is one global sequence: epoch e visits every row once, in an order that depends on (seed, e)
    alone. Each `take` advances all ranks together and deals rows in rank order, so the rows of a global
    batch do not depend on how many ranks share it. No row is drawn and then dropped.

    Args:
        dataset: a Hugging Face data set with columns `tokens` (integers) and `maskable` (booleans) of
            equal length in each row; columns `guide` and `document` of a number for each
            position are carried along (see `TokenBatch`); others are ignored. Rows may differ in length: they are
            padded on the right, and padding is neither attended to nor masked.
        seed: seed of the order.
        rank: this process's number, 0 ≤ rank < world_size.
        world_size: number of processes that share the stream.
        importance: draw rows in proportion to their loss and weigh them back. Rows are then
            drawn with replacement, and there are no epochs. None: every row once an epoch.

    Raises:
        ValueError: for an empty data set, missing columns, or a rank outside the world.
    """

    @kinds_checked
    def __init__(
        self,
        dataset: datasets.Dataset,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        importance: RowImportance | None = None,
    ) -> None:
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "these rows are needed in any order and more than once, and a streamed data set is read from its "
                "beginning on: take some of its rows into memory (Dataset.from_list(list(stream.take(1000)))), or "
                "make a data set on disk of it (unmask.data.tokenize with a cache)"
            )
        check_dataset(dataset)
        columns = columns_of(dataset.column_names)
        if len(dataset) == 0:
            raise ValueError("the data set is empty")
        check_rank(rank, world_size)
        self.dataset = dataset.select_columns(columns).with_format("numpy")
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.position = 0  # rows dealt so far, by all ranks together
        self.importance = importance
        self._scales = RowScales(importance, len(dataset)) if importance else None
        self._mean_length = _mean_effective_length(self.dataset) if importance else 0.0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)
        self._ahead: tuple[int, int, Ahead[TokenBatch]] | None = None

    @property
    def size(self) -> int | None:
        """Rows of the data set; None where it is streamed: nobody knows how many, and none comes back."""
        return len(self.dataset)

    @property
    def epoch(self) -> float:
        """How many times the data set has been dealt."""
        return self.position / len(self.dataset)

    def take(self, n: int, counts: Sequence[int] | None = None) -> TokenBatch:
        """Return this rank's next n rows.

        Args:
            n: number of rows for this rank, at least 0.
            counts: [world_size] what every rank takes in this call, where they differ; by default all take n.

        Raises:
            ValueError: for a negative n, counts that disagree with n, or a row without a maskable position.
        """
        offset, total = self._share(n, counts)
        start, ahead, self._ahead = self.position, self._ahead, None
        self.position += total
        if self._scales is not None:  # every rank follows the draws of all, and keeps its own
            sequence = torch.arange(start, self.position)
            chosen = self._scales.choose(noise.slot_uniforms(self.seed, 0, sequence, purpose=noise.Purpose.ORDER))
            row, draw, weight = (x[offset : offset + n] for x in chosen)
            length = torch.full((n,), self._mean_length, dtype=torch.float64)
            return replace(self.rows(row, draw), weight=weight.float(), expected_length=length)
        start += offset
        if ahead is not None and ahead[:2] == (start, n):
            return ahead[2].result()
        return self.rows(*self._numbers(start, n))

    def expect(self, n: int) -> None:
        """Fetch in a thread what the next `take(n)` will return, if all ranks take n and rows have no importance.

        It costs nothing to be wrong: whatever is taken then is fetched then. Errors are those of `take`, and come
        there.
        """
        if self._scales is None:
            start = self.position + self.rank * n
            numbers = self._numbers(start, n)
            self._ahead = start, n, Ahead(lambda: self.rows(*numbers))

    def _share(self, n: int, counts: Sequence[int] | None) -> tuple[int, int]:
        """How many rows go to earlier ranks in a `take`, and to all together."""
        counts = [n] * self.world_size if counts is None else list(counts)
        if n < 0 or len(counts) != self.world_size or counts[self.rank] != n:
            raise ValueError(f"rank {self.rank} of {self.world_size} cannot take {n} rows with counts {counts}")
        return sum(counts[: self.rank]), sum(counts)

    def _numbers(self, start: int, n: int) -> tuple[Tensor, Tensor]:
        """Numbers of the n rows from a place of the global sequence on, and how often each was drawn before."""
        sequence = torch.arange(start, start + n)
        draw = sequence // len(self.dataset)
        row = torch.empty_like(sequence)
        for epoch in draw.unique().tolist():
            here = draw == epoch
            row[here] = self._epoch_order(epoch)[sequence[here] % len(self.dataset)]
        return row, draw

    def rows(self, row: Tensor, draw: Tensor | None = None) -> TokenBatch:
        """Return the rows with the given numbers, [B] int64, whatever the stream's position."""
        columns = self.dataset[row.numpy()] if len(row) else {name: [] for name in self.dataset.column_names}
        return batch_of(columns, row, torch.zeros_like(row) if draw is None else draw)

    def observe(self, row: Tensor, loss: Tensor) -> None:
        """Take this rank's rows [B] and their losses [B], as drawn; looked at where rows are drawn by importance."""
        if self._scales is not None:
            self._scales.observe(*gather_rows(self.world_size, row, loss))

    def state_dict(self) -> dict[str, Any]:
        """The position, with what must agree for it to mean the same rows, and the rows' estimated losses."""
        state = {"position": self.position, "seed": self.seed, "size": len(self.dataset)}
        return state | ({"scales": self._scales.state_dict()} if self._scales else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the number of ranks may differ.

        Raises:
            ValueError: where the state belongs to another data set or seed.
        """
        if "place" in state:
            raise ValueError("the saved run read its rows from a stream: give it the same streamed data set again")
        check_state(state, ("position", "seed", "size"))
        own = self.state_dict()
        for name in ("seed", "size"):
            if state[name] != own[name]:
                what = "seed" if name == "seed" else "number of rows"
                raise ValueError(f"the saved stream had {what} {state[name]}, this one has {own[name]}")
        if ("scales" in state) != (self._scales is not None):
            raise ValueError("the saved stream and this one differ in whether rows are drawn by importance")
        self.position = int(state["position"])
        if self._scales is not None:
            self._scales.load_state_dict(state["scales"])

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, noise.permutation(self.seed, epoch, len(self.dataset))
        return self._order


CARRIED = {"guide": np.float64, "document": np.int64}
"""Columns of a number for each position that are carried along where a data set has them."""


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns of a data set that make rows; ValueError where some are missing."""
    missing = {"tokens", "maskable"} - set(names)
    if missing:
        raise ValueError(f"the data set lacks the column {' and '.join(sorted(missing))}; it has {list(names)}")
    return ["tokens", "maskable", *(name for name in CARRIED if name in names)]


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError for a rank outside the world."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size={world_size}, got {rank}")


def check_state(state: Mapping[str, Any], numbers: Sequence[str], texts: Sequence[str] = ()) -> None:
    """Raise ValueError where a saved stream lacks a number below 2^53 or a text of these names."""
    for name in (*numbers, *texts):
        value = state.get(name)
        fits = isinstance(value, str)
        if name not in texts:
            fits = type(value) is int and (name == "seed" or 0 <= value < 2**53)
        if not fits:
            raise ValueError(
                f"the saved stream has no {name} that can be one: it was altered, or another version wrote it; "
                "resume from an earlier checkpoint"
            )


def batch_of(columns: Mapping[str, Any], row: Tensor, draw: Tensor) -> TokenBatch:
    """Rows of any length as a batch, padded on the right.

    Args:
        columns: `tokens`, `maskable` and perhaps `guide` and `document`, each a list with an array for each row.
        row: [B] their numbers.
        draw: [B] how often each was drawn before.

    Raises:
        ValueError: for columns of different length in a row, or a row without a maskable position.
    """
    tokens, attention = _pad(columns["tokens"], np.int64)
    maskable, flagged = _pad(columns["maskable"], np.bool_)
    if not torch.equal(attention, flagged):
        raise ValueError(f"`tokens` and `maskable` differ in length in a row among {row.tolist()[:8]}")
    maskable &= attention
    carried = {}
    for name in CARRIED.keys() & columns.keys():
        carried[name], flagged = _pad(columns[name], CARRIED[name])
        if not torch.equal(attention, flagged):
            raise ValueError(f"`tokens` and `{name}` differ in length in a row among {row.tolist()[:8]}")
    empty = ~maskable.any(1)
    if empty.any():
        raise ValueError(
            f"row {int(row[empty][0])} of the data set has no maskable position, so nothing can be learnt "
            "from it; drop such rows"
        )
    return TokenBatch(
        tokens=tokens,
        maskable=maskable,
        attention=attention,
        row=row,
        draw=draw,
        weight=torch.ones(len(row)),
        **carried,
    )


def _mean_effective_length(dataset: datasets.Dataset, chunk: int = 10_000) -> float:
    """Mean number of maskable positions of a row of the whole data set."""
    total = 0
    for start in range(0, len(dataset), chunk):
        total += int(_pad(dataset[start : start + chunk]["maskable"], np.bool_)[0].sum())
    return total / len(dataset)


def _pad(rows: Any, dtype: Any) -> tuple[Tensor, Tensor]:
    """Stack rows of any length to [B, L], zeros on the right, and say which positions are real."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2:  # equal lengths arrive stacked
        values = torch.from_numpy(rows.astype(dtype))
        return values, torch.ones(values.shape, dtype=torch.bool)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    values = np.zeros((len(lengths), int(lengths.max(initial=0))), dtype=dtype)
    real = np.arange(values.shape[1]) < lengths[:, None]
    if len(lengths):
        values[real] = np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
    return torch.from_numpy(values), torch.from_numpy(real)


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
        tokens, real = _pad(columns["tokens"], np.int64)
        for name in ("maskable", *carried):
            counts = torch.tensor([0 if row is None else len(row) for row in columns[name]])
            if (wrong := counts != real.sum(1)).any():
                raise ValueError(
                    f"row {first + start + int(wrong.nonzero()[0])} of {of} has `tokens` and `{name}` of different "
                    "length"
                )
        maskable, _ = _pad(columns["maskable"], np.bool_)
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
                begins = _pad(columns["document"], np.int64)[0].diff(dim=1) != 0
                what = "has a document whose first token is maskable, which a shifted model cannot predict: "
                problems[what + "let the tokenizer begin texts with a BOS token"] = begins & maskable[:, 1:]
        for what, where in problems.items():
            where = where.any(1) if where.dim() == 2 else where
            if where.any():
                raise ValueError(f"row {first + start + int(where.nonzero()[0])} of {of} {what}")
        lengths += [int(real.sum(1).min()), tokens.shape[1]]
    return min(lengths), max(lengths)

"""RowStream: an endless, sharded, reshuffled sequence of rows whose whole state is one integer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
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

SAMPLED = 64
"""Rows of a data set that its fingerprint is of."""


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
        state = {"position": self.position, "seed": self.seed, "size": len(self.dataset), "sample": self._sample}
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
        if state.get("sample", own["sample"]) != own["sample"]:  # states were once saved without
            raise ValueError(
                "the data set has as many rows as that of the saved run, but they are others or in another order: "
                "give it the same one again"
            )
        if ("scales" in state) != (self._scales is not None):
            raise ValueError("the saved stream and this one differ in whether rows are drawn by importance")
        self.position = int(state["position"])
        if self._scales is not None:
            self._scales.load_state_dict(state["scales"])

    @cached_property
    def _sample(self) -> str:
        """A fingerprint of some rows from all over the data set: two of one size are told apart by it."""
        some = np.unique(np.linspace(0, len(self.dataset) - 1, SAMPLED, dtype=np.int64))
        return fingerprint(self.dataset[int(row)] for row in some)

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


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of the tokens that rows hold and where they can be masked, as hex digits."""
    digest = hashlib.sha256()
    for row in rows:
        for name in ("tokens", "maskable"):
            values = np.asarray(row[name], dtype=np.int64)
            digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    return digest.hexdigest()


def batch_of(columns: Mapping[str, Any], row: Tensor, draw: Tensor) -> TokenBatch:
    """Rows of any length as a batch, padded on the right.

    Args:
        columns: `tokens`, `maskable` and perhaps `guide` and `document`, each a list with an array for each row.
        row: [B] their numbers.
        draw: [B] how often each was drawn before.

    Raises:
        ValueError: for columns of different length in a row, or a row without a maskable position.
    """
    tokens, attention = pad(columns["tokens"], np.int64)
    maskable, flagged = pad(columns["maskable"], np.bool_)
    if not torch.equal(attention, flagged):
        raise ValueError(f"`tokens` and `maskable` differ in length in a row among {row.tolist()[:8]}")
    maskable &= attention
    carried = {}
    for name in CARRIED.keys() & columns.keys():
        carried[name], flagged = pad(columns[name], CARRIED[name])
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
        total += int(pad(dataset[start : start + chunk]["maskable"], np.bool_)[0].sum())
    return total / len(dataset)


def pad(rows: Any, dtype: Any) -> tuple[Tensor, Tensor]:
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

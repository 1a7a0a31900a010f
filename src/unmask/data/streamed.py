"""Rows that are read in a stream: nothing is kept on disk, nothing is read twice in an epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from unmask import noise
from unmask.batch import TokenBatch
from unmask.config import require
from unmask.data.ahead import Ahead
from unmask.data.importance import RowImportance
from unmask.data.stream import RowStream, batch_of, check_rank, check_state, columns_of, fingerprint

BLOCK = 1024
"""Rows read together, and dealt in an order of their own."""

Check = Callable[[Dataset, int], object]
"""Looks at the rows of a block, given the number of the first; raises ValueError."""


class StreamedRows(RowStream):
    """Deal the rows of a streamed data set, as `RowStream` does those of one that lies on the disk.

    An epoch reads the stream from its beginning to its end, in blocks, and deals those of a block in an order that
    depends on (seed, epoch, block); `shuffle` of the data set mixes further, anew in each epoch. A row's number is
    its place in the epoch's stream. So the rows of a stream that is no longer than a block are dealt as `RowStream`
    deals them; those of a longer one come later the later they lie in it.

    Every rank reads the whole stream and keeps its own rows, so they are disjoint, and the same for any number of
    ranks. A resume is exact: it goes to where the stream's own state says, and where that gives other rows (as after
    `shuffle`, whose buffer is no part of the state), it reads the epoch from its beginning.

    Args:
        dataset: a streamed Hugging Face data set with columns `tokens` and `maskable`, and perhaps `guide`.
        seed: of the order.
        rank: of this process.
        world_size: number of processes that share the rows.
        check: of every block that is read.
        block: rows read together.

    Raises:
        ValueError: for a rank outside the world; where rows are taken, for missing columns or an empty stream.
    """

    importance = None

    def __init__(
        self,
        dataset: IterableDataset,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        check: Check | None = None,
        block: int = BLOCK,
    ) -> None:
        check_rank(rank, world_size)
        self.stream, self.seed, self.rank, self.world_size = _own(dataset), seed, rank, world_size
        self.position = 0
        self._check, self._size, self._columns = check, block, ["tokens", "maskable"]
        self._reading: Ahead[list[dict[str, Any]]] | None = None
        self._go_to(0, 0, {})

    @property
    def size(self) -> None:
        """Nobody knows."""
        return None

    @property
    def epoch(self) -> float:
        """How many times the stream has been read to its end."""
        return float(self._epoch)

    def take(self, n: int, counts: Sequence[int] | None = None) -> TokenBatch:
        """Return this rank's next n rows; see `RowStream.take`."""
        offset, total = self._share(n, counts)
        found = [self._next() for _ in range(total)][offset : offset + n]
        self.position += total
        columns = {name: [row[name] for _, _, row in found] for name in self._columns}
        return batch_of(columns, torch.tensor([i for i, _, _ in found]), torch.tensor([e for _, e, _ in found]))

    def expect(self, n: int) -> None:
        """Nothing: the next block is read ahead in any case."""

    def rows(self, row: Tensor, draw: Tensor | None = None) -> TokenBatch:
        """Raise ValueError: a stream does not go back."""
        raise ValueError("the rows of a stream do not come back: what needs them again has to keep them")

    def observe(self, row: Tensor, loss: Tensor) -> None:
        """Nothing: rows have no importance."""

    def state_dict(self) -> dict[str, Any]:
        """Where in the stream the block begins that is being dealt, and how many of its rows were."""
        return {
            "position": self.position,
            "seed": self.seed,
            "epoch": self._epoch,
            "first": self._first,
            "place": self._place,
            "at": json.dumps(self._at),
            "block": fingerprint(self._block),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the number of ranks may differ.

        Raises:
            ValueError: where the state belongs to another seed or data set, or to one that is not streamed.
        """
        if "place" not in state:
            raise ValueError("the saved run had a data set on disk, this one is streamed: give it the same one again")
        if state.get("seed") != self.seed:
            raise ValueError(f"the saved stream had seed {state.get('seed')}, this one has {self.seed}")
        check_state(state, ("position", "seed", "epoch", "first", "place"), ("at", "block"))
        place = state["place"]
        # Where its own state is of no use to the stream, however that shows, the epoch is read from its beginning.
        with suppress(Exception):
            self._find(state, json.loads(state["at"]), 0)
        if fingerprint(self._block) != state["block"]:
            self._find(state, {}, state["first"])
        if fingerprint(self._block) != state["block"] or place > len(self._block):
            raise ValueError(
                "the streamed data set gives other rows than it gave to the saved run: its files have changed, or "
                "its order is another each time (shuffle it with a seed)"
            )
        self._look()
        self.position, self._place = state["position"], place

    def _find(self, state: dict[str, Any], at: dict[str, Any], skipped: int) -> None:
        """Read the block that was being dealt, or what is in its place now."""
        self._go_to(state["epoch"], state["first"], at, skipped)
        if state["place"] or state["first"]:
            self._read()

    def _go_to(self, epoch: int, first: int, at: dict[str, Any], skipped: int = 0) -> None:
        """Read next the block at row `first` of an epoch, `skipped` rows after the stream's state `at`."""
        if self._reading is not None:
            self._reading.wait()
        self._epoch, self._first, self._at = epoch, first, at
        self._block: list[dict[str, Any]] = []
        self._place, self._order = 0, [0]
        self.stream.set_epoch(epoch)
        self.stream.load_state_dict(at)
        self._iterator: Iterator[dict[str, Any]] = islice(iter(self.stream), skipped, None)
        self._read_ahead(at)

    def _read_ahead(self, at: dict[str, Any]) -> None:
        """Begin to read a block; `at` is the state of the stream there."""
        iterator, self._next_at = self._iterator, at
        self._reading = Ahead(lambda: list(islice(iterator, self._size)))

    def _read(self) -> None:
        """Put the next block in place of the one that was dealt; the one after it is read meanwhile."""
        assert self._reading is not None  # from the beginning on
        self._first += len(self._block)
        self._block, self._place, self._at = self._reading.result(), 0, self._next_at
        if not self._block:
            if self._first == 0:
                raise ValueError("the streamed data set has no row")
            self._go_to(self._epoch + 1, 0, {})
            self._read()
            return
        self._columns = columns_of(list(self._block[0]))
        self._order = noise.permutation(self.seed, self._epoch + (self._first << 32), len(self._block)).tolist()
        self._read_ahead(self.stream.state_dict())

    def _look(self) -> None:
        """Let `check` see the block that was read, if there is one."""
        if self._check is not None and self._block:
            self._check(Dataset.from_list([{k: row[k] for k in self._columns} for row in self._block]), self._first)

    def _next(self) -> tuple[int, int, dict[str, Any]]:
        if self._place == len(self._block):
            self._read()
            self._look()
        place = self._order[self._place]
        self._place += 1
        return self._first + place, self._epoch, self._block[place]


def _own(dataset: IterableDataset) -> IterableDataset:
    """A copy for one reader: a data set keeps its place itself, and others may read it while a thread does here."""
    try:
        return deepcopy(dataset)
    except Exception:  # whatever its generator holds that cannot be copied; with one reader it is none the worse
        return dataset


def rows_of(
    dataset: Dataset | IterableDataset,
    seed: int,
    rank: int,
    world_size: int,
    importance: RowImportance | None = None,
    check: Check | None = None,
) -> RowStream:
    """The rows of a run, of a data set that is streamed or not.

    Args:
        dataset: of either kind.
        seed: of the order.
        rank: of this process.
        world_size: number of processes that share the rows.
        importance: draws rows in proportion to their loss.
        check: of the rows of a stream, as they are read: nobody looked through them before.

    Raises:
        ValueError: for a stream with importance, and as for `StreamedRows` and `RowStream`.
    """
    if not isinstance(dataset, IterableDataset):
        return RowStream(dataset, seed, rank, world_size, importance)
    require(
        importance is None,
        "importance draws rows again and again by their loss, and a streamed data set gives each once an epoch: "
        "train without importance, or on rows on disk (unmask.data.tokenize with a cache)",
    )
    return StreamedRows(dataset, seed, rank, world_size, check)


def at_hand(dataset: Dataset | IterableDataset, most: int = 10_000) -> Dataset:
    """For what needs rows in any order: the data set itself, or of a streamed one at most so many first rows."""
    return dataset if isinstance(dataset, Dataset) else Dataset.from_list(list(dataset.take(most)))

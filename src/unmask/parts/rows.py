"""Rows that somebody else has made: any data set with the columns `tokens` and `maskable`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from unmask.config import positive_int, require
from unmask.data.checks import check_whole
from unmask.data.documents import JSON_LINES, belongs
from unmask.data.streamed import at_hand
from unmask.data.tables import on_hub, the_one
from unmask.parts.places import found_from
from unmask.parts.text import check_count, spread

_FORMS = {".parquet": "parquet", ".arrow": "arrow", **dict.fromkeys(JSON_LINES, "json")}
RowsSource = str | Callable[[], Dataset | IterableDataset] | None


@dataclass(frozen=True)
class RowsOnDisk:
    """Rows with the columns `tokens` and `maskable`, from files, the hub or a function of the user's own."""

    source: RowsSource = None
    """A folder of `Dataset.save_to_disk`; a .parquet, .jsonl or .arrow file; hub:NAME or hub:NAME:SUBSET; or
    module:function, which gives the data set: the module is imported only where --module names it."""
    held_out_source: RowsSource = None
    """The same of rows that are not trained on."""
    divided: bool = False
    """Without a held_out_source: one in ten rows of `source` is held out, by its tokens."""
    stream: bool = False
    """Keep no rows: every epoch reads `source` again, in its order, and mixes 1,024 rows at a time. For more than
    memory or disk hold; what is sorted by kind should be mixed before. A function may give an IterableDataset."""
    held_out_rows: int = 256
    """At most so many of them, spread evenly; of a stream the first ones."""

    def __post_init__(self) -> None:
        positive_int("held_out_rows", self.held_out_rows)

    def load(self) -> Dataset | IterableDataset:
        """The rows of `source` that are trained on; ValueError where none is named. Of a stream each caller gets one
        of its own."""
        return self._part("train")

    def held_out(self) -> Dataset:
        """Rows of `held_out_source`, or those of `source` that are held out; ValueError for fewer than two."""
        require(
            self.divided or self.held_out_source is not None,
            "no held-out rows are named: name them with --data.held-out-source, or hold some out with --data.divided",
        )
        apart = at_hand(self._part("validation"), self.held_out_rows)
        named = self.held_out_source
        check_count(len(apart), str(self.source), None if named is None else str(named))
        return spread(apart, self.held_out_rows)

    def found_from(self, folder: Path) -> RowsOnDisk:
        """The same with its files looked for in a folder too."""
        places = {"source": self.source, "held_out_source": self.held_out_source}
        found = {name: found_from(folder, at) if isinstance(at, str) else at for name, at in places.items()}
        return replace(self, **found)

    @cached_property
    def extent(self) -> Extent:
        """How many rows are trained on, how long rows are, which tokens they have; a stream is read through once."""
        rows = longest = largest = 0
        for part in (self.held_out(), self.load()):
            rows = 0
            for tokens in part["tokens"] if isinstance(part, Dataset) else (row["tokens"] for row in part):
                rows, longest, largest = rows + 1, max(longest, len(tokens)), max(largest, *tokens, 0)
        return Extent(rows, longest, largest)

    def _part(self, part: Literal["train", "validation"]) -> Dataset | IterableDataset:
        """The rows that are trained on, or those that are held out. Kept rows are read and divided once."""
        held_out = part == "validation"
        if self.held_out_source is not None and held_out:
            return _read(self.held_out_source, self.stream)
        rows = _read(self.source, True) if self.stream else self._rows
        if self.held_out_source is not None or not self.divided:
            return rows
        if isinstance(rows, IterableDataset):
            return rows.filter(lambda row: _is_held_out(row["tokens"]) == held_out)
        return self._parts[held_out]

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        rows = _read(self.source, False)
        if isinstance(rows, Dataset):
            _check_tokens(self.source, rows)
        return rows

    @cached_property
    def _parts(self) -> tuple[Dataset, Dataset]:
        """Of kept rows those that are trained on, and those that are held out."""
        rows = self._rows
        assert isinstance(rows, Dataset)
        out = [_is_held_out(tokens) for tokens in rows["tokens"]]
        kept, apart = (rows.select([i for i, is_out in enumerate(out) if is_out == part]) for part in (False, True))
        return kept, apart


def _is_held_out(tokens: Sequence[int]) -> bool:
    return belongs({"tokens": list(map(int, tokens))}, "validation", "tokens")


class Extent(NamedTuple):
    """Of rows.

    Attributes:
        rows: to train on.
        longest: tokens of the longest, held-out ones included.
        largest: token of any, held-out ones included.
    """

    rows: int
    longest: int
    largest: int


def _read(source: RowsSource, stream: bool) -> Dataset | IterableDataset:
    if source is None:
        raise ValueError(
            "no rows are named: name them with --data.source (a folder of Dataset.save_to_disk, a .parquet or .jsonl "
            "file, hub:NAME, or module:function). A run that was trained from Python does not know its rows"
        )
    rows = the_one(source() if callable(source) else _opened(source, stream), source)
    if isinstance(rows, IterableDataset):
        require(stream, f"{source} gives a stream: say --data.stream, or give a datasets.Dataset")
        first = next(iter(rows), {})
        require(bool(first), f"{source} holds no row")
        columns = list(first)
    else:
        require(isinstance(rows, Dataset), f"{source} gives {type(rows).__name__}, and no datasets.Dataset")
        first, columns = next(iter(rows), {}), rows.column_names
    missing = {"tokens", "maskable"} - set(columns)
    if missing:
        raise ValueError(f"{source} has no column {' and no column '.join(sorted(missing))}; it has {list(columns)}")
    require(bool(first), f"{source} holds no row")
    _check_row(source, first)
    return rows.to_iterable_dataset() if stream and isinstance(rows, Dataset) else rows


def _check_row(source: RowsSource, row: Mapping[str, Any]) -> None:
    """Of the types that all rows of a data set share."""
    tokens, maskable = (np.asarray(row[name]) for name in ("tokens", "maskable"))
    require(
        tokens.ndim == 1 and (tokens.dtype.kind in "iu" or not len(tokens)),
        f"{source}: tokens are a list of whole numbers, got {str(row['tokens'])[:60]}; texts are trained on with the "
        "recipes text, sft and sequences",
    )
    require(
        maskable.ndim == 1 and (maskable.dtype.kind in "biu" or not len(maskable)),
        f"{source}: maskable is a list of true and false, got {str(row['maskable'])[:60]}",
    )


def _check_tokens(source: RowsSource, rows: Dataset, chunk: int = 10_000) -> None:
    """Raise ValueError, by its number in the source, for a row with a token that no vocabulary has."""
    view = rows.select_columns("tokens").with_format("numpy")
    for start in range(0, len(view), chunk):
        tokens = list(view[start : start + chunk]["tokens"])
        check_whole(tokens, "tokens", start, str(source))
        below = np.concatenate(tokens) < 0
        if below.any():
            row = start + int(np.repeat(np.arange(len(tokens)), list(map(len, tokens)))[below.argmax()])
            raise ValueError(f"row {row} of {source} holds a token below 0")


def _opened(source: str, stream: bool) -> Any:
    path = Path(source)
    options: dict[str, Any] = {"split": "train", "streaming": stream}
    if named := on_hub(source):
        return load_dataset(*named, **options)
    if path.suffix in _FORMS and path.is_file():
        return load_dataset(_FORMS[path.suffix], data_files=str(path), **options)
    if path.is_dir():
        return load_from_disk(str(path))
    module, _, function = source.partition(":")
    require(
        not (function.isidentifier() and module),
        f"{source} is a function: its module is imported, and its code run, only if you say so: --module {module}",
    )
    raise ValueError(f"{source} is neither a folder of Dataset.save_to_disk nor a .parquet, .jsonl or .arrow file")

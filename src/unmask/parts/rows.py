"""Rows that somebody else has made: any data set with the columns `tokens` and `maskable`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from unmask.config import positive_int, require
from unmask.data.documents import belongs
from unmask.data.tables import on_hub, the_one
from unmask.parts.places import found_from
from unmask.parts.text import check_count, spread

_FORMS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}
RowsSource = str | Callable[[], Dataset] | None


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
    held_out_rows: int = 256
    """At most so many of them, spread evenly."""

    def __post_init__(self) -> None:
        positive_int("held_out_rows", self.held_out_rows)

    def load(self) -> Dataset:
        """The rows of `source` that are trained on; ValueError where none is named."""
        return self._rows if self.held_out_source is not None or not self.divided else self._parts[0]

    def held_out(self) -> Dataset:
        """Rows of `held_out_source`, or those of `source` that are held out; ValueError for fewer than two."""
        require(
            self.divided or self.held_out_source is not None,
            "no held-out rows are named: name them with --data.held-out-source, or hold some out with --data.divided",
        )
        apart = self._parts[1] if self.held_out_source is None else _read(self.held_out_source)
        check_count(len(apart), str(self.held_out_source or self.source))
        return spread(apart, self.held_out_rows)

    def found_from(self, folder: Path) -> RowsOnDisk:
        """The same with its files looked for in a folder too."""
        places = {"source": self.source, "held_out_source": self.held_out_source}
        found = {name: found_from(folder, at) if isinstance(at, str) else at for name, at in places.items()}
        return replace(self, **found)

    @cached_property
    def _rows(self) -> Dataset:
        return _read(self.source)

    @cached_property
    def _parts(self) -> tuple[Dataset, Dataset]:
        """The rows that are trained on, and those that are held out."""
        held_out = [belongs({"tokens": list(map(int, row))}, "validation", "tokens") for row in self._rows["tokens"]]
        kept, apart = (
            self._rows.select([i for i, out in enumerate(held_out) if out == part]) for part in (False, True)
        )
        return kept, apart


def _read(source: RowsSource) -> Dataset:
    if source is None:
        raise ValueError(
            "no rows are named: name them with --data.source (a folder of Dataset.save_to_disk, a .parquet or .jsonl "
            "file, hub:NAME, or module:function). A run that was trained from Python does not know its rows"
        )
    rows = the_one(source() if callable(source) else _opened(source), source)
    require(isinstance(rows, Dataset), f"{source} gives {type(rows).__name__}, and no datasets.Dataset")
    missing = {"tokens", "maskable"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{source} has no column {' and no column '.join(sorted(missing))}; it has {rows.column_names}"
        )
    require(len(rows) > 0, f"{source} holds no row")
    return rows


def _opened(source: str) -> Any:
    path = Path(source)
    if named := on_hub(source):
        return load_dataset(*named, split="train")
    if path.suffix in _FORMS and path.is_file():
        return load_dataset(_FORMS[path.suffix], data_files=str(path), split="train")
    if path.is_dir():
        return load_from_disk(str(path))
    module, _, function = source.partition(":")
    require(
        not (function.isidentifier() and module),
        f"{source} is a function: its module is imported, and its code run, only if you say so: --module {module}",
    )
    raise ValueError(f"{source} is neither a folder of Dataset.save_to_disk nor a .parquet, .jsonl or .arrow file")

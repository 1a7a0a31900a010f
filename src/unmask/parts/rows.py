"""Rows that somebody else has made: any data set with the columns `tokens` and `maskable`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from unmask.config import positive_int
from unmask.parts.places import found_from
from unmask.parts.text import spread

_FORMS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}


@dataclass(frozen=True)
class RowsOnDisk:
    """Rows with the columns `tokens` and `maskable`, as a data set is saved."""

    source: str | None = None
    """A folder of `Dataset.save_to_disk`, or a .parquet, .jsonl or .arrow file."""
    held_out_source: str | None = None
    """The same of rows that are not trained on."""
    held_out_rows: int = 256
    """At most so many of them, spread evenly."""

    def __post_init__(self) -> None:
        positive_int("held_out_rows", self.held_out_rows)

    def load(self) -> Dataset:
        """The rows of `source`; ValueError where none is named."""
        return _read(self.source, "source")

    def held_out(self) -> Dataset:
        """Rows of `held_out_source`; ValueError where none is named."""
        return spread(_read(self.held_out_source, "held_out_source"), self.held_out_rows)

    def found_from(self, folder: Path) -> RowsOnDisk:
        """The same with its files looked for in a folder too."""
        places = (None if name is None else found_from(folder, name) for name in (self.source, self.held_out_source))
        return replace(self, **dict(zip(("source", "held_out_source"), places, strict=True)))


def _read(source: str | None, field: str) -> Dataset:
    if source is None:
        raise ValueError(
            "the run was trained from Python, on rows that its config does not name: name them with "
            f"--data.{field.replace('_', '-')} (a folder of Dataset.save_to_disk, or a .parquet or .jsonl file)"
        )
    path = Path(source)
    if path.suffix in _FORMS and path.is_file():
        rows = load_dataset(_FORMS[path.suffix], data_files=str(path), split="train")
    elif path.is_dir():
        rows = load_from_disk(str(path))
    else:
        raise ValueError(
            f"{source} is neither a folder of Dataset.save_to_disk nor a .parquet, .jsonl or .arrow file"
        )
    if isinstance(rows, DatasetDict):
        raise ValueError(f"{source} holds several data sets: name one of them, {source}/{next(iter(rows))}")
    missing = {"tokens", "maskable"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{source} has no column {' and no column '.join(sorted(missing))}; it has {rows.column_names}"
        )
    return rows

"""Tables, read by the `datasets` library: CSV, JSON and parquet files, saved data sets, data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict, Features, Value, load_dataset, load_from_disk

from unmask.config import require
from unmask.data.columns import check_column

_HUB = "hub:"  # before the name of a data set on the hub
_SAVED = ("state.json", "dataset_dict.json")  # what a folder of `save_to_disk` holds, of one data set or of several
_FORMS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


def is_table(path: Path) -> bool:
    """Whether a file or folder is one that `read_table` reads: by the file's ending, or by what the folder holds."""
    return path.suffix.lower() in _FORMS if not path.is_dir() else any((path / name).is_file() for name in _SAVED)


def on_hub(source: Any) -> tuple[str, str | None] | None:
    """Name and subset of the data set that hub:NAME or hub:NAME:SUBSET stands for; None for any other source."""
    if not isinstance(source, str) or not source.startswith(_HUB):
        return None
    name, _, subset = source.removeprefix(_HUB).partition(":")
    return name, subset or None


def the_one(found: Any, source: Any) -> Any:
    """What was found at a source; ValueError for several data sets."""
    if isinstance(found, DatasetDict):
        raise ValueError(f"{source} holds several data sets: name one of them, {source}/{next(iter(found))}")
    return found


def read_table(source: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the rows of a table, one at a time.

    Args:
        source: a .csv, .tsv, .json, .parquet or .arrow file; a folder of `Dataset.save_to_disk`; or hub:NAME or
            hub:NAME:SUBSET, the training part of a data set on the Hugging Face hub.
        columns: what to take, by default everything. Cells of .csv and .tsv files are text.

    Raises:
        ValueError: for a file that cannot be read as what its ending says, several data sets in one folder, or a
            column that is not there, with those that are.
    """
    try:
        for row in _rows(source):
            for column in columns or ():
                check_column(source, column, row)
            if str(source).lower().endswith(".tsv"):
                _check_apart(row)
            yield row if columns is None else {column: row[column] for column in columns}
    except ValueError as error:  # those of pandas and pyarrow among them
        if str(source) in str(error):
            raise
        raise ValueError(f"cannot read {source}: {error}") from None


def _rows(source: str | Path) -> Any:
    if named := on_hub(source):
        return load_dataset(*named, split="train", streaming=True)
    path = Path(source)
    if path.is_dir():
        return the_one(load_from_disk(str(path)), path)
    require(path.stat().st_size > 0, f"{path} is empty")
    form = _FORMS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if form == "csv":  # cells are text: "007" and "NA" stay what they are
        options["sep"] = "\t" if path.suffix.lower() == ".tsv" else ","
        _check_utf8(path)
        first = pd.read_csv(path, nrows=1, dtype=str, **options)
        names = first.columns
        named = pd.read_csv(path, nrows=1, header=None, dtype=str, **options).iloc[0].dropna()
        twice = sorted(set(named[named.duplicated()]))
        require(not twice, f"{path} names {', '.join(map(repr, twice))} more than once in its first line: rename one")
        require(
            len(names) > 1 or not set(names[0]) & set(";|\t"),
            f"{path} has the one column {names[0]!r}: part columns by commas, or by tabs in a .tsv",
        )
        require(  # else pandas takes what comes first for the row's name, and every field for the next one's
            isinstance(first.index, pd.RangeIndex),
            f"{path}: its rows have more fields than the {len(names)} that the first line names: put a field that "
            "holds what parts them in quotes, or name them all",
        )
        options |= {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}
    return load_dataset(form, data_files=str(path), split="train", streaming=True, **options)


def _check_apart(row: dict[str, str]) -> None:
    """Refuse rows that a quotation mark has joined: as text, where tabs part the cells, a lone one is common."""
    for column, cell in row.items():
        require(
            cell is None or not {"\t", "\n"} <= set(cell),
            f"a cell of {column!r} holds both tabs and line breaks, as where a quotation mark is not closed and rows "
            f"were taken for one: {cell[:40] if cell else cell!r}. Put the cell in quotes and double the marks in "
            "it; where it is meant so, write the table as .csv or .jsonl",
        )


def _check_utf8(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        try:
            while file.read(1 << 20):
                pass
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error.reason}; convert the file") from None

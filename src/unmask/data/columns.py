"""Small things that the data sets share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from unmask.config import meant

PathLike = str | os.PathLike[str]


class MissingColumn(ValueError):
    """Rows lack a column that was asked for."""


def check_column(where: object, column: str, there: Iterable[str]) -> None:
    """Raise MissingColumn, with the columns that are there and a near one, unless the column is one of them."""
    there = list(there)
    if column not in there:
        raise MissingColumn(f"{where} has no column {column!r}; it has {there}{meant(column, there)}")


@contextmanager
def columns_named_by(*fields: str) -> Iterator[None]:
    """Let a missing column's error say which fields of a config, and options, name the columns that are read."""
    try:
        yield
    except MissingColumn as error:
        options = " and ".join(f"{field} (--data.{field})" for field in fields)
        end = "" if str(error).endswith("?") else "."
        raise ValueError(f"{error}{end} Name your own by {options}") from None


def check_dataset(dataset: Any) -> None:
    """Raise TypeError for anything but a data set, such as a dictionary of splits."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"expected one datasets.Dataset or IterableDataset, got {type(dataset).__name__}; choose a split"
        )


def list_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """A ``[rows, length]`` array as one Arrow column, without a detour over Python lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def to_numpy(values) -> np.ndarray:
    """NumPy view of an array, a list or a torch tensor on any device."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)

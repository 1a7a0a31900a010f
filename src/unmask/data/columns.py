"""Small things that the data sets share."""

from __future__ import annotations

import difflib
import os

import numpy as np
import pyarrow as pa

PathLike = str | os.PathLike[str]


def list_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """A ``[rows, length]`` array as one Arrow column, without a detour over Python lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def to_numpy(values) -> np.ndarray:
    """NumPy view of an array, a list or a torch tensor on any device."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError with the nearest known name unless `name` is known."""
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]
        raise ValueError(f"unknown {what} {name!r}; did you mean {nearest!r}? Known: {', '.join(known)}")

"""Small things that the data sets share."""

from __future__ import annotations

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

"""Fingerprints of rows and of weights: whether two measurements are of the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn


def data_hash(dataset: Dataset, chunk: int = 10_000) -> str:
    """SHA-256 (64 hexadecimal digits) of the rows' tokens and maskable flags, in order.

    The same for any integer type of the column and any chunk of rows held at a time; other columns do not count.
    """
    parts = {name: hashlib.sha256() for name in ("length", "tokens", "maskable")}
    view = dataset.select_columns(["tokens", "maskable"]).with_format("numpy")
    for start in range(0, len(view), chunk):
        columns: Mapping[str, Any] = view[start : start + chunk]
        parts["length"].update(np.array([len(row) for row in columns["tokens"]], dtype="<i8").tobytes())
        for name, dtype in (("tokens", "<i8"), ("maskable", "?")):
            parts[name].update(np.concatenate([np.asarray(row) for row in columns[name]]).astype(dtype).tobytes())
    return hashlib.sha256("".join(part.hexdigest() for part in parts.values()).encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (64 hexadecimal digits) of a model's parameters and buffers with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: NumPy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

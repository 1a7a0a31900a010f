"""What a state keeps of the rows of a pool, and the rows that it stands for when it is loaded.

Of rows on a disk a state holds the numbers alone: the tokens come back from the stream. A stream that does not go
back (`unmask.data.streamed`) has its rows kept whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import TokenBatch
from unmask.data.stream import RowStream

_COLUMNS = ("tokens", "maskable", "attention", "guide", "document")


def kept_of(clean: TokenBatch, rows: RowStream) -> dict[str, Tensor]:
    """What a state holds of rows [N, L] of a stream: tensors row by row, [N] or [N, L]."""
    whole = () if rows.size is not None else _COLUMNS
    columns = {f"kept_{name}": value.clone() for name in whole if (value := getattr(clean, name)) is not None}
    return {"row": clean.row.clone(), "draw": clean.draw.clone(), "tokens": _fingerprint(clean), **columns}


def rows_kept(state: dict[str, Tensor], rows: RowStream) -> TokenBatch:
    """The rows of which `kept_of` made the state.

    Raises:
        ValueError: where the stream gives other tokens for their numbers.
    """
    row, draw = state["row"].clone(), state["draw"].clone()
    if rows.size is not None:
        clean = rows.rows(row, draw)
    else:
        columns = {name: state[f"kept_{name}"].clone() for name in _COLUMNS if f"kept_{name}" in state}
        clean = TokenBatch(row=row, draw=draw, weight=torch.ones(len(row)), **columns)
    if not torch.equal(_fingerprint(clean), state["tokens"]):
        raise ValueError("the rows of the saved pool have other tokens in this data set: it has changed since")
    return clean


def _fingerprint(clean: TokenBatch) -> Tensor:
    """[N] int64 of tokens and maskable positions, whatever the padding."""
    position = torch.arange(clean.length)
    return (noise.hashes(clean.tokens, clean.maskable.long(), position) * clean.attention).sum(1)

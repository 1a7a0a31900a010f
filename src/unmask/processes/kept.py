"""What a state keeps of the rows of a pool, and the rows that it stands for when it is loaded.

Of rows on a disk a state holds the numbers alone: the tokens come back from the stream. A stream that does not go
back (`unmask.data.streamed`) has its rows kept whole, each column in the smallest numbers that hold it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import TokenBatch
from unmask.config import completed, differences, require
from unmask.data.stream import CARRIED, RowStream

_COLUMNS = {"tokens": torch.int64, "maskable": torch.bool, "attention": torch.bool}
_COLUMNS |= {name: torch.as_tensor(kind()).dtype for name, kind in CARRIED.items()}


def kept_of(clean: TokenBatch, rows: RowStream) -> dict[str, Tensor]:
    """What a state holds of rows [N, L] of a stream: tensors row by row, [N] or [N, L]."""
    whole = _COLUMNS if rows.size is None else ()
    columns = {f"kept_{name}": _small(value) for name in whole if (value := getattr(clean, name)) is not None}
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
        kept = {name: state[f"kept_{name}"] for name in _COLUMNS if f"kept_{name}" in state}
        columns = {name: value.to(_COLUMNS[name], copy=True) for name, value in kept.items()}
        clean = TokenBatch(row=row, draw=draw, weight=torch.ones(len(row)), **columns)
    if not torch.equal(_fingerprint(clean), state["tokens"]):
        raise ValueError("the rows of the saved pool have other tokens in this data set: it has changed since")
    return clean


def check_same_pool(state: dict[str, Any], made_by: dict[str, Any], place: Tensor) -> None:
    """Refuse the state of another pool, or of another part of it.

    Args:
        state: with "pool" and, since states have them, "made_by" and the rows' "place".
        made_by: what this run's chains go by, in values of JSON.
        place: [N] of this rank's rows in the whole pool.

    Raises:
        ValueError: saying what differs, and what to do.
    """
    other = differences(completed(state.get("made_by", made_by)), made_by)
    require(not other, f"the saved chains are of another run ({'; '.join(other)}): resume with what it had")
    kept = state["pool"].get("place", place)
    require(
        len(state["pool"]["row"]) == len(place) and torch.equal(kept, place),
        f"the state holds {len(state['pool']['row'])} chains from number {int(kept[0])} on of the pool, this rank "
        f"has {len(place)} from {int(place[0])} on: give every rank the state that it saved, on as many ranks; for "
        "another number of them deal all their states anew (unmask.processes.dealt_anew), as `unmask.Trainer` does",
    )


def _small(column: Tensor) -> Tensor:
    """A copy in the smallest numbers that hold it exactly."""
    if column.dtype == torch.bool:
        return column.clone()
    kinds = (torch.int16, torch.int32, torch.float32)
    fits = (kind for kind in kinds if torch.equal(column.to(kind).to(column.dtype), column))
    return column.to(next(fits, column.dtype), copy=True)


def _fingerprint(clean: TokenBatch) -> Tensor:
    """[N] int64 of tokens and maskable positions, whatever the padding."""
    position = torch.arange(clean.length)
    return (noise.hashes(clean.tokens, clean.maskable.long(), position) * clean.attention).sum(1)

"""What every forward process offers, and the checks they share."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from unmask.batch import MaskedBatch, Scores, joined_rows
from unmask.config import positive_int
from unmask.data.stream import RowStream


class ForwardProcess(Protocol):
    """A running process: it pulls rows from its stream and yields the rows of one step at a time."""

    @property
    def needs(self) -> tuple[str, ...] | None:
        """Statistics of `Scores` that `observe` wants; None where it wants no scores at all."""
        ...

    def draw(self) -> MaskedBatch:
        """The whole step's rows of this rank."""
        ...

    def observe(self, scores: Scores | None) -> None:
        """Take the model's scores for all rows of the last draw. Only processes with `needs` look at them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All a resumed run needs, in nested dicts of tensors, numbers and strings; rows' position included.

        What belongs to rows of this rank lies in a dict "pool" of tensors whose first dimension is the row, in the
        order of the global slots; everything else is the same on all ranks.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


class Masking(Protocol):
    """A masking config: a frozen dataclass that starts a forward process."""

    @property
    def has_density(self) -> bool:
        """Whether the process can state the density of what it draws."""
        ...

    @property
    def peeks(self) -> bool:
        """Whether masks depend on the tokens that they hide: then there is no likelihood bound."""
        ...

    @property
    def support(self) -> tuple[float, float]:
        """The interval (low, high] of mask rates it draws."""
        ...

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ForwardProcess:
        """Start the process. `batch_size` counts the rows (forwards) of a step over all ranks together."""
        ...


def local_size(batch_size: int, world_size: int, unit: int = 1) -> int:
    """Rows of a step for one rank.

    Raises:
        ValueError: where the global batch does not divide into ranks, or a rank's share into units.
    """
    positive_int("batch_size", batch_size)
    if batch_size % (world_size * unit):
        parts = [f"{world_size} ranks"] * (world_size > 1) + [f"units of {unit} rows"] * (unit > 1)
        into = " and ".join(parts)
        raise ValueError(
            f"batch_size {batch_size} does not divide into {into}: use a multiple of {world_size * unit}"
        )
    return batch_size // world_size


def check_kind(state: dict[str, Any], *names: str) -> None:
    """Raise ValueError where a saved state lacks one of the names that such a process saves."""
    if not set(names) <= set(state):
        raise ValueError(
            "the saved state is of another kind of masking, or altered: go on with the masking it was saved under"
        )


def dealt_anew(states: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """The state of one of `world_size` ranks, from the states that the ranks of another run saved.

    Args:
        states: of every rank, in order.
        rank: the one to make a state for.
        world_size: how many ranks share the run now.

    Raises:
        ValueError: where the rows do not divide into so many ranks.
    """
    first = states[0]
    if "pool" not in first:
        return first
    pool = {name: joined_rows([state["pool"][name] for state in states]) for name in first["pool"]}
    total = len(next(iter(pool.values())))
    if total % world_size:
        raise ValueError(f"a pool of {total} rows does not divide into {world_size} ranks")
    each = total // world_size
    return first | {"pool": {name: rows[rank * each : (rank + 1) * each].clone() for name, rows in pool.items()}}

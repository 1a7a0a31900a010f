"""The few collectives that the mathematics needs, on torch.distributed alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_counts(count: int, world_size: int) -> list[int]:
    """Every rank's `count`, in rank order. With one rank there is nothing to ask.

    Raises:
        RuntimeError: where more ranks are expected than torch.distributed connects.
    """
    return gather_rows(world_size, torch.tensor([count]))[0].tolist()


def gather_rows(world_size: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """Join columns [n, ...] over all ranks, in rank order; every rank must have the same n. On the CPU.

    Raises:
        RuntimeError: where more ranks are expected than torch.distributed connects.
    """
    if world_size == 1:
        return columns
    if not dist.is_initialized() or dist.get_world_size() != world_size:
        raise RuntimeError(
            f"a stream over {world_size} ranks needs torch.distributed to be initialised with as many; "
            "start the script with `accelerate launch` or `torchrun`"
        )
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    joined = []
    for column in columns:
        parts = [torch.empty_like(column, device=device) for _ in range(world_size)]
        dist.all_gather(parts, column.contiguous().to(device))
        joined.append(torch.cat(parts).cpu())
    return tuple(joined)


def sum_over_ranks(world_size: int, value: Tensor) -> Tensor:
    """Sum a tensor over all ranks; on the CPU, the same bits on every rank."""
    return value if world_size == 1 else gather_rows(world_size, value[None])[0].sum(0)

"""The few collectives that the mathematics needs, on torch.distributed alone."""

from __future__ import annotations

import torch
import torch.distributed as dist


def gather_counts(count: int, world_size: int) -> list[int]:
    """Every rank's `count`, in rank order. With one rank there is nothing to ask.

    Raises:
        RuntimeError: where more ranks are expected than torch.distributed connects.
    """
    if world_size == 1:
        return [count]
    if not dist.is_initialized() or dist.get_world_size() != world_size:
        raise RuntimeError(
            f"a stream over {world_size} ranks needs torch.distributed to be initialised with as many; "
            "start the script with `accelerate launch` or `torchrun`"
        )
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return [int(c) for c in counts]

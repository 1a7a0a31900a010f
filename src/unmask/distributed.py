"""What every layer needs to know of ranks and of weights that are spread over them, on torch.distributed alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


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


def raise_together(world_size: int, problem: Exception | None, kind: type[Exception]) -> None:
    """Raise on every rank what one of them met; else the others would wait for it. Every rank must call it.

    Messages travel as bytes of UTF-8: nothing is pickled.

    Args:
        world_size: number of ranks.
        problem: this rank's own, if it met one; it raises this very exception.
        kind: what the other ranks raise, with the first rank's message that met one.
    """
    if world_size > 1:
        said = b"" if problem is None else f"rank {dist.get_rank()}: {problem}".encode()
        lengths = gather_counts(len(said), world_size)
        if any(lengths):
            mine = torch.zeros(max(lengths), dtype=torch.uint8)
            mine[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else mine[:0]
            (every,) = gather_rows(world_size, mine[None])
            if problem is None:
                first = next(rank for rank, length in enumerate(lengths) if length)
                raise kind(bytes(every[first, : lengths[first]].tolist()).decode())
    if problem is not None:
        raise problem


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; a collective under FSDP2, nothing elsewhere."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Put a whole tensor where `like` is, sharded as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def reshard(model: nn.Module) -> None:
    """Let go of what FSDP2 gathered for forwards that no backward followed; nothing elsewhere.

    Until then parameters are other objects than those that the optimiser knows.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether this rank holds only a part of the weights (FSDP2)."""
    return any(isinstance(p, DTensor) for p in model.parameters())

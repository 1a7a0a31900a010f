"""What every layer needs to know of ranks and of weights that are spread over them, on torch.distributed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


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


def place_among_ranks() -> tuple[int, int]:
    """This process's rank and how many there are: 0 of 1 without torch.distributed."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


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
            mine = torch.tensor(list(said.ljust(max(lengths), b"\0")), dtype=torch.uint8)
            (every,) = gather_rows(world_size, mine[None])
            if problem is None:
                first = next(rank for rank, length in enumerate(lengths) if length)
                raise kind(bytes(every[first, : lengths[first]].tolist()).decode())
    if problem is not None:
        raise problem


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; a collective under FSDP2, nothing elsewhere."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def gathered(tensors: Mapping[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Gather tensors one after another for a rank that keeps them; a collective under FSDP2.

    So a device holds one of them whole at a time, and the host of no rank but the one that keeps them holds all.

    Args:
        tensors: by name, in the same order on every rank.
        keeps: whether this rank does; others get nothing.
    """
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if keeps:
            kept[name] = value.cpu() if isinstance(tensor, DTensor) else value
        del value  # before the next is gathered
    return kept


def placed(value: Tensor | None, like: Tensor) -> Tensor:
    """Put a whole tensor where `like` is, sharded as it is: under FSDP2 a collective, and the first rank's counts.

    Args:
        value: whole, or already sharded; None on ranks but the first, where only that one has it.
        like: of the same shape and dtype.
    """
    if isinstance(value, DTensor):
        return value
    if isinstance(like, DTensor):
        value = torch.empty(like.shape, dtype=like.dtype) if value is None else value.to(like.dtype)
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    assert value is not None  # a whole tensor, which every rank has
    return value.to(like.device)


@dataclass(frozen=True)
class Piece:
    """What one rank has of a tensor that ranks share.

    Attributes:
        offset: where in the whole it begins.
        values: the piece; of a rank that has nothing, without elements.
    """

    offset: Sequence[int]
    values: Tensor

    @classmethod
    def of(cls, tensor: DTensor) -> Piece:
        """This rank's own."""
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(offset, tensor.to_local())


def from_pieces(pieces: Sequence[Piece], shape: Sequence[int], like: Tensor) -> Tensor:
    """Make a tensor of the pieces that ranks had of it, as `like` is: whole, or this rank's piece of it.

    Args:
        pieces: of any number of ranks, at least one; together they are the whole.
        shape: of the whole.
        like: tells device and sharding.
    """
    size, start = tuple(shape), (0,) * len(shape)
    if isinstance(like, DTensor):
        size, start = compute_local_shape_and_global_offset(torch.Size(shape), like.device_mesh, like.placements)
    own = pieces[0].values.new_zeros(size)
    for piece in pieces:
        low = [max(a, b) for a, b in zip(start, piece.offset, strict=True)]
        high = [min(a + n, b + m) for a, n, b, m in zip(start, size, piece.offset, piece.values.shape, strict=True)]
        if all(first < last for first, last in zip(low, high, strict=True)):
            to, of = (
                tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True))
                for begin in (start, piece.offset)
            )
            own[to] = piece.values[of]
    own = own.to(like.device)
    if not isinstance(like, DTensor):
        return own
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


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

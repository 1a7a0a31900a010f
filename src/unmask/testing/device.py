"""A device that has no float64, on any machine: what Apple's GPU refuses, and what a GPU waits for, without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_WAITS = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
}  # fmt: skip
# Indices, and what is put at them, may lie on the host.
_INDEXES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class DeviceTensor(Tensor):
    """A tensor of the simulated device: its numbers lie in `numbers`, a tensor of the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        """Wrap a tensor; torch itself takes it for one of its device "meta", which has no numbers."""
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("meta"),
        )  # fmt: skip
        made.numbers = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """What code that asks is told."""
        return Float32Device.device

    def tolist(self) -> Any:
        """The numbers, on the host."""
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Where the numbers are: what tells shared weights from others."""
        return self.numbers.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.numbers!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside of the mode there is no such device."""
        raise RuntimeError("a tensor of the simulated device outlived it: move it to the CPU inside of the `with`")


class Float32Device(TorchDispatchMode):
    """Inside this `with`, `device` (Apple's, by name) is a device that computes on the CPU and has no float64.

    A tensor gets there by `.to(device)` or by being made there, as on a real device. What a real one refuses is
    refused: float64, and operations between its tensors and the host's (numbers aside).

    It counts what costs time on a GPU whatever the size of the tensors.

    Attributes:
        operations: kernels that it was given, copies to it and from it included; views are none.
        waits: names of operations for which the host had to know a number of the device's: a copy to the host, an
            `item`, a shape that depends on the data.

    Raises:
        RuntimeError: for a float64 tensor on the device, or an operation between tensors of both.
    """

    device = torch.device("mps", 0)  # with a number, or torch asks a backend for it

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the CPU, and see to it that its tensors could be where they say they are."""
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        here = [t for t in tree_iter((args, kwargs)) if isinstance(t, DeviceTensor)]
        made_here = target is not None and torch.device(target).type in (self.device.type, "meta")
        if not here and not made_here:
            return func(*args, **kwargs)
        if func not in _MOVES | _INDEXES:
            for tensor in tree_iter((args, kwargs)):
                if isinstance(tensor, Tensor) and not isinstance(tensor, DeviceTensor) and tensor.dim() > 0:
                    raise RuntimeError(f"{func}: one tensor is on the device and another of {tensor.shape} is not")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        plain = tree_map_only(DeviceTensor, lambda t: t.numbers, (args, kwargs))
        out = func(*plain[0], **plain[1])
        self.operations += not func.is_view
        from_here = target is not None or (func in _MOVES and not isinstance(args[0], DeviceTensor))
        to_host = from_here and not made_here
        indices = args[1] if func in _INDEXES else ()
        if to_host or func in _WAITS or any(t is not None and t.dtype == torch.bool for t in indices):
            self.waits.append(str(func))
        if to_host:
            return args[0] if func is torch.ops.aten.copy_.default else out

        def wrap(tensor: Tensor) -> DeviceTensor:
            if tensor.dtype == torch.float64:
                raise RuntimeError(f"{func}: this device has no float64, and {tuple(tensor.shape)} would be")
            return DeviceTensor(tensor)

        out = tree_map_only(Tensor, wrap, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

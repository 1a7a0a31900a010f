"""Numbers on their way from the device to the host: asked for when they exist, waited for when they are read."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """A tensor that the host will read.

    On CUDA the copy goes into pinned memory behind what the device has to do before it, and the host goes on; other
    devices are asked when the numbers are read.

    Args:
        value: no gradient runs through it. Nothing may write into it before it is read.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._copied = value.detach(), None
        if value.device.type == "cuda":
            pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value = pinned.copy_(self._value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Tensor:
        """The numbers, on the CPU; waits for them where they are not there yet."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        self._value = self._value.cpu()
        return self._value

"""Settings of the machine that a training process makes for itself."""

from __future__ import annotations

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    Activations of a few MiB are otherwise mapped anew at each step, and every page of them faults. Returns
    whether it was done; a C library without `mallopt` is left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 32 << 20  # glibc accepts no higher threshold
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, largest) and libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products for a precision setting ("auto", "bf16", "fp32"); None for plain fp32."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return None

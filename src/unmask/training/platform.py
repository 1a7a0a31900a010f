"""Settings of the machine that a training process makes for itself."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil

import torch
from torch import nn
from transformers import PreTrainedModel

from unmask.model import MaskedDiffusionLM

FUSED_ATTENTION_FROM = 512
"""Row length from which SDPA's CPU kernel is used in bf16. Plain products may still be faster there, but keep
[B, H, L, L] weights of every layer for the backward: a fifth of a GiB in a step of benchmarks/large.py. In single
precision SDPA is rarely slower (benchmarks/attention.py measures both)."""

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


def attention_kernel(device: torch.device, dtype: torch.dtype | None, length: int) -> str:
    """Attention for rows so long: "plain" (products, see `unmask.attention`) or "sdpa". See `set_attention`."""
    plain = device.type == "cpu" and dtype == torch.bfloat16 and length < FUSED_ATTENTION_FROM
    return "plain" if plain else "sdpa"


def set_attention(
    model: MaskedDiffusionLM, setting: str, device: torch.device, dtype: torch.dtype | None, length: int
) -> None:
    """Set the attention of a model for rows of `length` tokens; the weights stay as they are.

    Args:
        model: the denoiser. One that is not a Hugging Face model has no kernel to choose.
        setting: "plain", "eager", "sdpa", or "auto": "plain" where it is faster and rows are short, else "sdpa".
            "auto" leaves a model alone that came with another kernel (flash attention), or that does not take a
            kernel from outside.
        device: where it will run.
        dtype: that of matrix products under autocast; None for none.
        length: longest row.

    Raises:
        ValueError: where a kernel is named that the model does not have.
    """
    backbone = model.backbone
    if not isinstance(backbone, PreTrainedModel):
        if setting != "auto":
            raise ValueError(f"attention '{setting}' needs a Hugging Face backbone; use attention 'auto'")
        return
    takes_kernels = backbone._supports_sdpa and backbone._supports_attention_backend
    if setting == "auto":
        if not takes_kernels or backbone.config._attn_implementation not in ("eager", "plain", "sdpa"):
            return
        setting = attention_kernel(device, dtype, length)
    if setting == "plain" and not takes_kernels:
        raise ValueError(f"{type(backbone).__name__} does not take attention 'plain'; use attention 'eager'")
    backbone.set_attn_implementation(setting)


def compile_layers(model: MaskedDiffusionLM, device: torch.device) -> None:
    """Compile the backbone's repeated layers in place: names and weights stay, and all share one compilation.

    Raises:
        ValueError: for a backbone without a list of layers, or a CPU without a C++ compiler.
    """
    layers = [layer for module in model.backbone.modules() if isinstance(module, nn.ModuleList) for layer in module]
    if not layers:
        raise ValueError(f"{type(model.backbone).__name__} has no list of layers to compile; train without compile")
    compiler = os.environ.get("CXX", "g++")  # where torch looks
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"compile needs the C++ compiler {compiler}: install it, or train without compile")
    for layer in layers:
        layer.compile()

"""Settings of the machine that a training process makes for itself."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

from unmask.distributed import is_sharded, reshard
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import ON_GPU

FUSED_ATTENTION_FROM = 512
"""Row length from which SDPA's CPU kernel is used in bf16. Plain products may still be faster there, but keep
[B, H, L, L] weights of every layer for the backward: a fifth of a GiB in a step of benchmarks/large.py. In single
precision SDPA is rarely slower (benchmarks/attention.py measures both)."""

COMPILE_FROM = {"cpu": 1e14, "cuda": 1e17}
"""Operations (6 for each weight of the layers and token) from which a run gains by compiling its layers; on a CPU for
each thread. There it saves .7 to 4 ms of a thread's time in 1e9 operations, the less the wider the layers
(benchmarks/results/matmul.md), and costs 15 to 60 s. For CUDA the figure is set by that of compiling, a minute, and
was not measured."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    Activations and gradients of a few MiB and more are otherwise mapped anew at each step, and every page of them
    faults. The price is a somewhat higher peak, as the heap has holes (docs/LOG.md has both figures). Returns
    whether it was done; a C library without `mallopt` is left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of matrix products by precision setting; None for plain fp32."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products for a precision setting: one of `DTYPES`, or "auto", which looks at the device.

    A GPU older than Ampere (T4, V100) emulates bf16 slowly and has fp16. A processor gains by bf16 where it has
    units for matrices (AMX). With the vector instructions alone (avx512_bf16) Intel's multiply no faster than in
    fp32, and steps took half as long again (docs/LOG.md).
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context with matrix products in `dtype`; None for plain fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name_of(dtype: torch.dtype | None) -> str:
    """The precision setting that gives this dtype of matrix products."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def attention_kernel(device: torch.device, dtype: torch.dtype | None, length: int) -> str:
    """Attention for rows so long: "plain" (see `unmask.models.attention`) or "sdpa". See `set_attention`."""
    plain = device.type == "cpu" and dtype == torch.bfloat16 and length < FUSED_ATTENTION_FROM
    return "plain" if plain else "sdpa"


def set_attention(
    model: MaskedDiffusionLM, setting: str, device: torch.device, dtype: torch.dtype | None, length: int
) -> None:
    """Set the attention of a model for rows of `length` tokens; the weights stay as they are.

    Args:
        model: the denoiser. One that is not a Hugging Face model has no kernel to choose.
        setting: "plain", "eager", "sdpa", "flex_attention", "flash_attention_2", or "auto": "plain" where it is
            faster and rows are short, else "sdpa". "auto" leaves a model alone that came with another kernel (flash
            attention), or that does not take a kernel from outside.
        device: where it will run.
        dtype: that of matrix products under autocast; None for none.
        length: longest row.

    Raises:
        ValueError: where a kernel is named that the model, the device or the precision does not have.
    """
    backbone = model.backbone
    if not isinstance(backbone, PreTrainedModel):
        if setting != "auto":
            raise ValueError(f"attention '{setting}' needs a Hugging Face backbone; use attention 'auto'")
        return
    takes_kernels = backbone._supports_sdpa and backbone._supports_attention_backend
    if setting == "auto":
        own = backbone.config._attn_implementation
        if own in ON_GPU:
            _check_on_gpu(own, device, dtype)
        if not takes_kernels or own not in ("eager", "plain", "sdpa"):
            return
        setting = attention_kernel(device, dtype, length)
    if setting == "plain" and not takes_kernels:
        raise ValueError(f"{type(backbone).__name__} does not take attention 'plain'; use attention 'eager'")
    if setting in ON_GPU:
        _check_on_gpu(setting, device, dtype)
    try:
        backbone.set_attn_implementation(setting)
    except (ImportError, ValueError) as error:  # its package is missing, or the family does not take it
        raise ValueError(f"attention '{setting}': {error}") from None


def _check_on_gpu(kernel: str, device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise ValueError where a kernel cannot run."""
    if device.type != "cuda":
        raise ValueError(f"attention '{kernel}' runs on CUDA alone, and this is {device.type}: use attention 'sdpa'")
    if kernel.startswith("flash") and dtype is None:
        raise ValueError(f"attention '{kernel}' has no fp32: use precision bf16 or fp16, or attention 'sdpa'")


def should_compile(
    setting: bool | None, model: MaskedDiffusionLM, device: torch.device, dtype: torch.dtype | None, tokens: int
) -> bool:
    """Whether a training run compiles its layers.

    A run's settings and its machine decide, so a resumed run does as its first part did.

    Args:
        setting: True, False, or None: where the run is long enough to gain by it, the layers are those of a Hugging
            Face model, whole on each rank, products are in bf16, and there is a compiler.
        model: the denoiser, as it will run.
        device: where it will run.
        dtype: that of matrix products under autocast; None for none.
        tokens: of the whole run on this rank.
    """
    if setting is not None:
        return setting
    layers = _layers(model.backbone)
    if dtype != torch.bfloat16 or not isinstance(model.backbone, PreTrainedModel) or device.type not in COMPILE_FROM:
        return False
    if is_sharded(model):
        return False
    if not (has_triton() if device.type == "cuda" else shutil.which(_compiler())):
        return False
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    weights = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    return 6 * weights * tokens / threads >= COMPILE_FROM[device.type]


def compile_layers(model: MaskedDiffusionLM, device: torch.device, dynamic: bool) -> None:
    """Compile the backbone's repeated layers in place: names and weights stay, and all share one compilation.

    Args:
        model: the denoiser.
        device: where it will run.
        dynamic: whether rows differ in number or length from step to step. One compilation then serves them all, a
            few per cent slower than one for a single shape. What runs does not depend on what ran before, so a
            resumed run goes on with the same numbers.

    Raises:
        ValueError: for a backbone without a list of layers, or a CPU without a C++ compiler.
    """
    layers = _layers(model.backbone)
    if not layers:
        raise ValueError(f"{type(model.backbone).__name__} has no list of layers to compile; train without compile")
    if device.type == "cpu" and shutil.which(_compiler()) is None:
        raise ValueError(f"compile needs the C++ compiler {_compiler()}: install it, or train without compile")
    for layer in layers:
        layer.compile(dynamic=dynamic)


def restore_layers(model: MaskedDiffusionLM) -> None:
    """Undo `compile_layers`: what comes after training has other shapes, each of which would be compiled."""
    for layer in _layers(model.backbone):
        layer._compiled_call_impl = None


def _layers(backbone: nn.Module) -> list[nn.Module]:
    """The list of modules that holds most of a model's weights; empty where it has none."""
    lists = [list(module) for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda modules: sum(p.numel() for m in modules for p in m.parameters()), default=[])


def _compiler() -> str:
    return os.environ.get("CXX", "g++")  # where torch looks


def described(model: MaskedDiffusionLM, dtype: torch.dtype | None, compiled: bool) -> dict[str, Any]:
    """What the settings came to on this machine: device, precision, attention kernel, compiled or not."""
    return {
        "device": model.device.type,
        "precision": name_of(dtype),
        "attention": getattr(model.config, "_attn_implementation", None),
        "compiled": compiled,
    }


@contextmanager
def measuring(
    model: MaskedDiffusionLM, device: torch.device, dtype: torch.dtype | None, compiled: bool
) -> Iterator[None]:
    """Matrix products in `dtype`; compiled layers run as written, as their shapes would be new ones."""
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with eager, autocast(device, dtype):
            yield
    finally:
        reshard(model)

"""The optimiser of a run, over the parameters that are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from unmask.training.config import TrainingConfig

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""Makes an optimiser of parameter groups, as `lambda groups: torch.optim.SGD(groups, lr=0.1)`. The loop sets each
group's learning rate at every step."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters: matrices, which decay, and norms, biases and other vectors, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, config: TrainingConfig, device: torch.device) -> AdamW:
    """AdamW as the config says, fused where the device has that."""
    return AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def updates_where_finite(optimizer: Optimizer, norm: Tensor) -> bool:
    """Take a step unless the gradient's norm [] is not finite; return whether the device decides that by itself.

    A fused optimiser of torch is told by a flag on the device, and the host does not wait. Any other has to be left
    alone by the host, which must know the norm: False says so, and no step was taken.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if not (getattr(inner, "_step_supports_amp_scaling", False) and inner.defaults.get("fused")):
        return False
    inner.grad_scale, inner.found_inf = None, (~norm.isfinite()).float()
    try:
        optimizer.step()
    finally:
        del inner.grad_scale, inner.found_inf
    return True

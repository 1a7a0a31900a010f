"""The output layer alone: ours, with scores from the same pass, and Liger's fused cross-entropy, which has none."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.steps import Size, Step
from unmask.models.head import masked_cross_entropy

LIGER = find_spec("liger_kernel") is not None


def heads(size: Size, device: str) -> dict[str, Step]:
    """Forward and backward from bf16 states at half of the maskable positions; Liger's where it is installed."""
    torch.manual_seed(0)
    count, options = size.batch * (size.length - size.prompt) // 2, {"device": device, "dtype": torch.bfloat16}
    states = torch.randn(count, size.width, **options).requires_grad_()
    weight = (torch.randn(size.vocabulary, size.width, **options) * size.width**-0.5).requires_grad_()
    targets = torch.randint(size.mask_token, (count,), device=device)
    shares = torch.full((count,), 1 / count, device=device)

    def ours(needs: tuple[str, ...] | None) -> Tensor:
        return masked_cross_entropy(states, weight, None, targets, shares, size.mask_token, needs)[0]

    losses = {
        "unmask, loss alone": lambda: ours(None),
        "unmask, loss and confidence": lambda: ours(("log_confidence",)),
    }
    if LIGER:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        fused = LigerFusedLinearCrossEntropyLoss()
        losses["Liger, loss alone"] = lambda: fused(weight, states, targets)

    def step(name: str) -> Tensor:
        states.grad = weight.grad = None
        loss = losses[name]()
        loss.backward()
        return loss.detach()

    return {name: lambda name=name: step(name) for name in losses}

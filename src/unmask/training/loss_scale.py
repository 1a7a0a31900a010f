"""The loss scale of fp16: gradients are multiplied before they are rounded, and divided before they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from unmask.config import require


@dataclass
class LossScale:
    """A power of two that doubles after many good steps and halves at an overflow (arXiv 1710.03740).

    The step of an overflow is skipped: neither the weights nor their average change. Whether a gradient is finite is
    read off its norm over all ranks, so every rank decides alike, under FSDP too.

    Attributes:
        value: what the loss is multiplied by.
        good: steps since it last changed.
    """

    value: float = 2.0**16
    good: int = 0

    GROW_AFTER: ClassVar[int] = 2000

    @staticmethod
    def check(parameters: Iterable[nn.Parameter]) -> None:
        """Refuse weights that are trained in fp16: a step of the optimiser is lost in their rounding."""
        require(
            all(p.dtype != torch.float16 for p in parameters if p.requires_grad),
            "precision fp16 is for matrix products; the trained weights are fp16 too, and too coarse to be trained: "
            'load the model with dtype="float32"',
        )

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def skips(self, norm: float) -> bool:
        """Adapt to the norm of a step's gradient; return whether the step is skipped for an overflow.

        At a scale of 1 or less the scale is not the cause, and no step is skipped.
        """
        overflow = not math.isfinite(norm)
        if overflow and self.value > 1:
            self.value, self.good = self.value / 2, 0
            return True
        self.good += not overflow
        if self.good == self.GROW_AFTER:
            self.value, self.good = self.value * 2, 0
        return False

    def state_dict(self) -> dict[str, Any]:
        """Scale and count."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.value, self.good = float(state["value"]), int(state["good"])

"""What a step leaves in the log, read when the device has long been done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.batch import MaskedBatch
from unmask.training.diagnostics import Diagnostics
from unmask.training.later import Later
from unmask.training.micro import StepOutputs


@dataclass(frozen=True)
class Figures:
    """A step as far as it is known before the device has done it.

    Attributes:
        batch: this rank's rows.
        weights: [B, L] of the masked tokens, before Z.
        normaliser: Z, over all ranks.
        outputs: of the forwards.
        norm: of the gradient; None where the step was skipped for an overflow.
        looks: whether figures by mask rate are wanted.
        masked: masked tokens, over all ranks.
        shown: what is known already.
        broken: whether a loss is known not to be finite, on any rank.
    """

    batch: MaskedBatch
    weights: Tensor
    normaliser: Tensor
    outputs: StepOutputs
    norm: Later | None
    looks: bool
    masked: int
    shown: dict[str, Any]
    broken: bool

    def read(self, diagnostics: Diagnostics, ranks: int, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The figures for the log; every rank must call it.

        Args:
            diagnostics: of the run.
            ranks: how many there are.
            total: the sum of a tensor over them.
        """
        found = self.outputs.read()
        weights = self.weights if found.factor is None else self.weights * found.factor
        own = [(found.nll * weights).sum().double(), found.nll.double().sum(), torch.tensor(found.balance or 0.0)]
        loss, nats, balance = total(torch.stack([value.double() for value in own])).tolist()
        loss /= float(self.normaliser)
        norm = None if self.norm is None else float(self.norm.read())
        extra: dict[str, Any] = {}
        if found.balance is not None:  # experts used evenly; not part of "loss"
            extra["balance"] = balance / ranks
        if self.looks:
            assert found.gradient is not None  # it was asked for
            mean = found.gradient / ranks
            extra |= diagnostics.of(self.batch, found.nll, weights, mean, self.normaliser, total)
        return {"loss": loss, "nll": nats / max(1, self.masked), "grad_norm": norm, **self.shown, **extra}

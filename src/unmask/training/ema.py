"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Moving average of a model's parameters in fp32.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.

    Args:
        model: whose parameters.
        decay: share kept at each step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 0, 1, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the weights for the length of a `with` block."""
        kept = [p.detach().clone() for p in self.parameters]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The average, in fp32 also where the weights are not, under the names of `model.state_dict()`."""
        averages = {id(p): average for p, average in zip(self.parameters, self.average, strict=True)}
        own = model.state_dict(keep_vars=True)
        return {name: averages[id(t)] if id(t) in averages else t.detach() for name, t in own.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], model: nn.Module) -> None:
        """Restore the average from weights under the names of `model.state_dict()`."""
        by_parameter = {id(p): name for name, p in model.named_parameters()}
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.copy_(weights[by_parameter[id(parameter)]])

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

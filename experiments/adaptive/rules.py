"""Candidate rules for a time distribution that learns, during training, which mask rates to train at.

Each takes in the mean nll of every row with its rate and sets its density anew every few steps. None of them
is part of the library: see docs/LOG.md for how they fared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.processes.ppots import Tabulated
from unmask.times import Beta

BINS = 64
MIDDLE = (torch.arange(BINS).double() + 0.5) / BINS


class Rule(Tabulated):
    """Base: losses by rate, smoothed over rates and over time; a new rule defines `wanted`.

    Averages run over a share of the steps so far, not over a fixed number: a step s' < s weighs (s'/s)^(k-1),
    so that its mean age is s / (k + 1).

    Args:
        share: share of the uniform density that is always kept.
        width: standard deviation of the Gaussian by which losses are smoothed over rates.
        first: steps at uniform rates before the first density.
        every: steps between two densities.
        beta: replace the density by the Beta with its mean and variance.
    """

    ages = (8, 2)  # k of the recent and of the old average

    def __init__(
        self, share: float = 0.2, width: float = 0.06, first: int = 60, every: int = 10, beta: bool = False
    ) -> None:
        super().__init__(torch.ones(BINS, dtype=torch.float64))
        self.share, self.first, self.every, self.beta = share, first, every, beta
        self.kernel = torch.exp(-0.5 * ((MIDDLE[:, None] - MIDDLE) / width) ** 2)
        self.sums = torch.zeros(len(self.ages), 3, BINS, dtype=torch.float64)  # count, Σ loss, Σ loss²
        self.steps = 0

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """[BINS] the density up to a factor, from the recent and old [2, BINS] mean and variance of the loss."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Always."""
        return True

    def start(self) -> Rule:
        """Itself: these classes are made for one run."""
        return self

    def observe(self, rate: Tensor, loss: Tensor, world_size: int = 1) -> None:
        """Add the losses of a step (of one rank alone) to the averages."""
        self.steps += 1
        bin_ = (rate * BINS).ceil().long().clamp(1, BINS) - 1
        step = torch.stack([torch.bincount(bin_, w.double(), BINS) for w in (torch.ones_like(loss), loss, loss**2)])
        for sums, age in zip(self.sums, self.ages, strict=True):
            sums.mul_(max(0.0, 1 - (age - 1) / self.steps)).add_(step)

    def due(self, step: int) -> bool:
        """Whether a new density is due."""
        return step >= self.first and step % self.every == 0

    def refit(self, profile: None = None) -> None:
        """Set the density anew."""
        count, total, square = (self.sums @ self.kernel).unbind(1)
        mean = total / count
        wanted = self.wanted(mean, (square / count - mean**2).clamp(min=0)).clamp(min=0)
        if not wanted.sum() > 0:
            return
        wanted = wanted / wanted.sum()
        if self.beta:
            centre = float((wanted * MIDDLE).sum())
            spread = float((wanted * (MIDDLE - centre) ** 2).sum())
            size = centre * (1 - centre) / spread - 1
            shapes = [min(max(x * size, 0.5), 10.0) for x in (centre, 1 - centre)]
            wanted = Beta(*shapes).density(MIDDLE)
            wanted = wanted / wanted.sum()
        self.mass = (1 - self.share) * wanted + self.share / BINS


class Loss(Rule):
    """As high as the loss itself."""

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The recent mean loss."""
        return mean[0]


class Fall(Rule):
    """As high as the loss fell of late, in time measured on a logarithmic scale."""

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The old mean loss less the recent one."""
        return mean[1] - mean[0]


class Product(Rule):
    """As high as the loss times its fall of late: no rates that are learnt, and none that cannot be."""

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The recent mean loss times the old less the recent one."""
        return mean[0] * (mean[1] - mean[0]).clamp(min=0)


class Gain(Rule):
    """As high as t times the loss times its fall of late: a row has t · L tokens to learn from."""

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Like `Product`, times t."""
        return MIDDLE * mean[0] * (mean[1] - mean[0]).clamp(min=0)


class Spread(Rule):
    """As high as the spread of a token's loss, judged by that of rows: √t times its standard deviation."""

    def wanted(self, mean: Tensor, variance: Tensor) -> Tensor:
        """√(t · variance)."""
        return (MIDDLE * variance[0]).sqrt()


RULES = {"loss": Loss, "fall": Fall, "product": Product, "gain": Gain, "spread": Spread}

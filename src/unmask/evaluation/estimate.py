"""A figure with its 95% interval, and the two ways to one: the delta method over rows, the bootstrap over sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor

from unmask.config import require


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    def map(self, rising: Callable[[float], float]) -> Estimate:
        """A rising function of the figure and of the ends."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))


def ratio(values: Tensor, units: Tensor) -> Estimate:
    """Σ values / Σ units over independent rows with the delta method's 95% interval.

    Args:
        values: [N].
        units: [N], not negative.

    Raises:
        ValueError: for fewer than two rows with a unit.
    """
    values, units = values.double(), units.double()
    here = units > 0
    count = int(here.sum())
    require(count >= 2, f"an interval over rows needs at least 2 rows, got {count}")
    value = values[here].sum() / units[here].sum()
    residual = values[here] - value * units[here]
    error = float((residual.square().sum() * count / (count - 1)).sqrt() / units[here].sum())
    reach = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    return Estimate(float(value), float(value) - reach, float(value) + reach)


def bootstrap(statistic: Callable[[Tensor], Tensor], count: int, seed: int, resamples: int = 1000) -> Estimate:
    """Percentile interval of a statistic of `count` independent sets.

    Args:
        statistic: of the sets with these indices, int64 [count], some of them repeated.
        count: sets.
        seed: of the resampling.
        resamples: how many.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)])
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Estimate(float(statistic(torch.arange(count))), low, high)

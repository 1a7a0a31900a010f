"""A figure with its 95% interval, and the ways to one: of runs, of rows by the delta method, of sets by bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import torch
from torch import Tensor

from unmask.config import require

GROUPS = 12
"""Groups of neighbours that stand for independent rows. Fewer are surer of what lies within a group, and know less of
how groups differ (tests/evaluation/test_coverage.py)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, reach: float) -> Estimate:
        """A figure with an interval that reaches as far to both sides."""
        return cls(value, value - reach, value + reach)

    def map(self, rising: Callable[[float], float]) -> Estimate:
        """A rising function of the figure and of the ends."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))


def exp(value: float) -> float:
    """e to a power, infinite where math.exp would raise: few rows have wide intervals."""
    return math.exp(value) if value < 700 else math.inf


def student(free: int, share: float = 0.95) -> float:
    """Standard errors that the t interval of that coverage reaches to either side, by its degrees of freedom."""
    return float(scipy.special.stdtrit(free, (1 + share) / 2))


def mean_of(values: Sequence[float] | np.ndarray, share: float = 0.95) -> Estimate:
    """Mean of normal values with its t interval of that coverage, infinite for a single one; ValueError for none."""
    require(len(values) > 0, "there is no value to average")
    middle = float(np.mean(values))
    if len(values) == 1:
        return Estimate(middle, -math.inf, math.inf)
    with np.errstate(invalid="ignore"):  # infinite values have no deviation: NaN, and verdicts say so
        error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate.around(middle, student(len(values) - 1, share) * error)


def deviation_of(values: Sequence[float]) -> Estimate:
    """Standard deviation of normal values with its chi-square interval; ValueError for fewer than two."""
    require(len(values) > 1, f"a deviation needs at least 2 values, got {len(values)}")
    free, found = len(values) - 1, float(np.std(values, ddof=1))
    chi_square = (2 * float(scipy.special.gammaincinv(free / 2, q)) for q in (0.975, 0.025))
    low, high = (found * math.sqrt(free / value) for value in chi_square)
    return Estimate(found, low, high)


def ratio(values: Tensor, units: Tensor, share: float = 0.95) -> Estimate:
    """Σ values / Σ units over rows with the delta method's interval.

    Rows that follow one another may be cut from one document, and are alike then. So runs of neighbours, `GROUPS` of
    them in all, are what the interval takes for independent (batch means), with Student's t. Where rows are
    independent it is a tenth wider than it need be. A row of neither value nor unit is none; one of value alone
    counts, as in any ratio of sums.

    Args:
        values: [N], in the order of the data.
        units: [N], not negative.
        share: coverage of the interval.

    Raises:
        ValueError: for fewer than two rows, or without any unit.
    """
    values, units = values.double(), units.double()
    here = (units > 0) | (values != 0)
    values, units, count = values[here], units[here], int(here.sum())
    require(count >= 2, f"an interval over rows needs at least 2 rows, got {count}")
    require(bool(units.sum() > 0), f"nothing to divide by: of {count} rows none has a unit")
    value = values.sum() / units.sum()
    groups = min(count, GROUPS)
    group = torch.arange(count) * groups // count
    residual = torch.zeros(groups, dtype=torch.float64).scatter_add(0, group, values - value * units)
    error = float((residual.square().sum() * groups / (groups - 1)).sqrt() / units.sum())
    return Estimate.around(float(value), student(groups - 1, share) * error)


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

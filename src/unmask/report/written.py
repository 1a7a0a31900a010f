"""How figures are written in sentences and tables."""

from __future__ import annotations

import math
from dataclasses import replace

from unmask.evaluation.estimate import Estimate
from unmask.evaluation.speedup import Measure, Paired


def amount(value: float) -> str:
    """Steps, tokens or seconds; of a short run's not nothing."""
    return f"{value:.0f}" if value >= 1 else f"{value:.2g}"


def interval(estimate: Estimate, measure: Measure, *, signed: bool) -> str:
    """A figure with its 95% interval, in percent or points where it is a share; by itself where there is none."""
    scale, form = (100, ".1f") if measure.is_share else (1, measure.form)
    low, high = estimate.low, estimate.high
    if measure.is_share and not signed and math.isfinite(low):  # of few runs a t interval may leave what there is
        low, high = max(low, 0.0), min(high, 1.0)
    numbers = (estimate.value, low, high)
    value, low, high = (format(scale * x, f"{'+' if signed else ''}z{form}") for x in numbers)
    return f"{value} ({low}{' to ' if signed else '–'}{high})" if all(map(math.isfinite, numbers)) else value


def difference(paired: Paired, measure: Measure) -> str:
    """A difference with its sign and interval."""
    return interval(paired.estimate, measure, signed=True)


def ratio(paired: Paired) -> str:
    """With its interval; of one seed there is none, and that is marked."""
    found = paired.estimate
    if paired.pairs == 1:
        return f"~{found.value:.2f}x"
    return f"{found.value:.2f}x" + (f" ({found.low:.2f}–{found.high:.2f})" if math.isfinite(found.high) else "")


def times(paired: Paired) -> str:
    """A ratio of costs in words: so many times fewer, or more where it is below 1."""
    found = paired.estimate
    if found.value >= 1:
        return f"{ratio(paired)} fewer"
    inverse = Estimate(*(1 / x if x else math.inf for x in (found.value, found.high, found.low)))
    return f"{ratio(replace(paired, estimate=inverse))} more"


def verdict(paired: Paired) -> str:
    """What a difference says of an arm."""
    return paired.verdict("better", "worse")

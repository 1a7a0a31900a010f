"""A loss along a rate, a distance or a radius, as `unmask.evaluation.locality` measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Point:
    """One place on a curve.

    Attributes:
        label: the bin, as it is shown.
        loss: nats per masked token there.
        floor: irreducible part: exactly, or an upper bound on it, where a reference was given.
        learnable: loss - floor, paired by row.
        tokens: masked tokens it is the mean of.
        rows: rows that they are from.
    """

    label: str
    loss: Estimate
    floor: Estimate | None
    learnable: Estimate | None
    tokens: int
    rows: int


@dataclass(frozen=True)
class Curve:
    """Points along `against`, in ascending order; bins met in fewer than two rows are left out."""

    against: str
    points: tuple[Point, ...]


def share_within(curve: Curve) -> list[tuple[str, float]]:
    """Of what the model draws from context, the share found within each radius: (radius, share).

    The drop of the loss from the first radius to this one over its drop to "all"; needs radius 0 for the first.
    """
    first, last = curve.points[0].loss.value, curve.points[-1].loss.value
    drop = first - last
    return [(p.label, (first - p.loss.value) / drop if drop > 0 else math.nan) for p in curve.points]

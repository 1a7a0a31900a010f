"""Which arm to try first, and how sure that is: the rule of `unmask advise`, apart from what it is fed with.

The rule. Every arm has a score on the same held-out rows, less is better, after equally many steps from the same
weights on the same data, for each seed. First is the arm with the least mean. It is told from another arm where

- the interval of the paired difference lies on one side of zero. It is of 95% for all differences together: of k arms
  each has the level 1 - .05 / (k (k - 1) / 2) (Bonferroni), as the first was chosen by looking. It covers the rows,
  by the interval (`estimate.ratio`) of scores averaged over the seeds, and how training varies, by the t interval of
  the seeds' means: the squares of the two add up. What varies from seed to seed is pooled over all arms, as two seeds
  of one pair know next to nothing of it. Where only one number of each seed is known, pairs are the seeds alone;
- and the difference lies on the same side for every seed by itself, of two at least.

The advice is sure where the first is told from all others; where it is not, those that it is not told from are named.
The rule knows no control, and the order of the arms changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from unmask.config import from_json, ours, require, to_json
from unmask.evaluation.curve import Curve, Point
from unmask.evaluation.estimate import Estimate, mean_of, ratio, student
from unmask.store.files import replace_text

ADVICE = "advice.json"
LEVEL = 0.95
"""Of all differences together."""


@dataclass(frozen=True)
class Gap:
    """How far behind the first an arm is.

    Attributes:
        arm: its name.
        behind: its mean score less the first's, with the interval of the rule; of one seed over the rows alone.
        told: whether the rule tells it from the first; never by one seed.
    """

    arm: str
    behind: Estimate
    told: bool


@dataclass(frozen=True)
class Advice:
    """Which arm to try first.

    Attributes:
        first: the arm with the least mean score; of several alike the first by name.
        mean: its mean score.
        gaps: all others, the nearest first.
        seeds: how many each arm was trained with.
        pairs: how many the intervals are over.
    """

    first: str
    mean: float
    gaps: tuple[Gap, ...]
    seeds: int
    pairs: int

    @property
    def tied(self) -> tuple[str, ...]:
        """The arms that the first is not told from."""
        return tuple(gap.arm for gap in self.gaps if not gap.told)

    @property
    def sure(self) -> bool:
        """Whether the first is told from all others."""
        return not self.tied

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.sure:
            return f"Try {self.first} first."
        if len(self.tied) == len(self.gaps):
            return f"Not distinguishable: {self.first} has the least loss, but is told from no other arm."
        return f"Try {self.first} first, but it is not distinguishable from {', '.join(self.tied)}."


@dataclass(frozen=True)
class Probe:
    """What a probe found: the advice, and what it was taken from or helps to understand it.

    Attributes:
        advice: by the rule.
        steps: of each short run.
        horizon: steps of the run that is advised on.
        seconds: of a training step, by arm.
        locality: loss by rate, distance and radius under the control's model; empty where there was no time for it.
    """

    advice: Advice
    steps: int
    horizon: int
    seconds: Mapping[str, float]
    locality: tuple[Curve, ...] = ()

    def save(self, folder: Path) -> None:
        """Write advice.json into a folder."""
        told = {"verdict": self.advice.verdict, "sure": self.advice.sure, "probe": to_json(self)}
        replace_text(folder / ADVICE, json.dumps(told, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what `save` wrote; ValueError for another file."""
        try:
            found = from_json(json.loads((folder / ADVICE).read_text(encoding="utf-8"))["probe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / ADVICE} holds no advice: {error!r}") from None
        require(isinstance(found, cls), f"{folder / ADVICE} holds no advice")
        return found


ours(Advice, Curve, Estimate, Gap, Point, Probe, settings=False)


def advise_by(scores: Mapping[str, ArrayLike]) -> Advice:
    """Apply the rule.

    Args:
        scores: of each arm [seeds, rows], less is better: the same seeds and rows for all arms, in the same order.

    Raises:
        ValueError: for fewer than two arms, scores of different shapes, or some that are not finite.
    """
    found = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    require(len(found) > 1, f"advice needs at least two arms, got {', '.join(found) or 'none'}")
    shapes = {values.shape for values in found.values()}
    require(
        len(shapes) == 1 and len(shape := shapes.pop()) == 2 and min(shape) > 0,
        "scores are [seeds, rows], alike for all arms, got "
        + ", ".join(f"{name} {list(values.shape)}" for name, values in found.items()),
    )
    wrong = [name for name, values in found.items() if not np.isfinite(values).all()]
    require(not wrong, f"scores of {', '.join(wrong)} are not finite")
    first = min(found, key=lambda name: (found[name].mean(), name))
    share = 1 - (1 - LEVEL) / (len(found) * (len(found) - 1) / 2)
    varies = _reach_over_seeds(np.stack([found[name].mean(1) for name in sorted(found)]), share)
    gaps = [_gap(name, values - found[first], share, varies) for name, values in found.items() if name != first]
    seeds, rows = found[first].shape
    return Advice(
        first,
        float(found[first].mean()),
        tuple(sorted(gaps, key=lambda gap: (gap.behind.value, gap.arm))),
        seeds,
        rows if rows > 1 else seeds,
    )


def _reach_over_seeds(means: np.ndarray, share: float) -> float:
    """How far the interval of a difference of two arms reaches for how training varies; 0 for one seed, which tells
    nothing of it.

    Args:
        means: [arms, seeds]. What they leave beside the means of arms and of seeds is how an arm varies; of two arms
            it makes the t interval of the paired difference.
        share: coverage of the interval.
    """
    arms, seeds = means.shape
    if seeds == 1:
        return 0.0
    left = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    free = (arms - 1) * (seeds - 1)
    error = math.sqrt(2 * float(np.square(left).sum()) / free / seeds)
    return student(free, share) * error


def _gap(arm: str, difference: np.ndarray, share: float, varies: float) -> Gap:
    """By the differences [seeds, rows] from the first, and how far training varies (`_reach_over_seeds`)."""
    of_seeds = difference.mean(1)
    if difference.shape[1] > 1:
        rows = torch.from_numpy(difference.mean(0))
        over = ratio(rows, torch.ones_like(rows), share)
        behind = Estimate.around(over.value, math.hypot(over.high - over.value, varies))
    else:
        behind = mean_of(of_seeds, share)
    return Gap(arm, behind, bool(len(of_seeds) > 1 and behind.low > 0 and (of_seeds > 0).all()))

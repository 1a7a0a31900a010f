"""What accelerates training? An arm of a study against its control, run by run.

Runs of one seed share data order, weights at the start and validation noise, so an arm is compared with the control
over the seeds that both have. A target counts when it is held at two evaluations after one another; when, is
interpolated between evaluations and never extrapolated. Intervals are of 95%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy.integrate

from unmask.evaluation.estimate import Estimate, exp, mean_of

CLAIM = 5
"""Paired seeds for a claim; fewer are an indication."""

ONE_SEED = "no verdict from one seed"
"""What stands for a verdict where nothing tells how training varies."""

NOT_FINITE = "not finite"
"""What stands for a verdict where a run ended in no finite number."""

Cost = Literal["step", "tokens", "seconds"]
Costs = Mapping[Cost, Mapping[int, float | None]]
Role = Literal["start", "screen", "compare"]


@dataclass(frozen=True)
class Measure:
    """A number by which runs are compared.

    Attributes:
        key: its name in evaluations.
        label: what it is.
        rises: whether more is better.
        form: how it is written, as for `format`.
    """

    key: str
    label: str
    rises: bool = False
    form: str = ".4g"

    @property
    def is_share(self) -> bool:
        """Whether it is written in percent."""
        return self.form.endswith("%")

    @property
    def heading(self) -> str:
        """The label with a capital."""
        return self.label[:1].upper() + self.label[1:]

    def good(self, value: float) -> float:
        """The value, its sign turned where less is better; what is no number is worse than any."""
        if math.isnan(value):
            return -math.inf
        return value if self.rises else -value


MEASURES = (
    Measure("solved", "solved", True, ".1%"),
    Measure("nats_per_token", "negative ELBO, nats per token", False, ".3f"),
    Measure("loss", "held-out loss, nats", False, ".3f"),
)


def measure_of(values: Mapping[str, Any]) -> Measure | None:
    """By which of the numbers of an evaluation runs are compared; None if it has none that is known."""
    return next((measure for measure in MEASURES if measure.key in values), None)


def interval_of(values: Mapping[str, Any], measure: Measure) -> tuple[float, float] | None:
    """A measure's own 95% interval over rows or puzzles in an evaluation; None where it has none.

    It goes by the measure's name, as "solved_interval". A bare "interval" is that of what `measure_of` names.
    """
    bare = values.get("interval") if measure_of(values) == measure else None
    found = values.get(f"{measure.key}_interval", bare)
    return None if found is None else (float(found[0]), float(found[1]))


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        arm: its name.
        seed: its seed.
        steps: its budget.
        role: "compare", "screen" or "start".
        curve: evaluations in order: "step", "seconds" (of training alone), "tokens", and what was measured.
        finals: results of the evaluations made once, on the last model.
        record: the whole record.
    """

    arm: str
    seed: int
    steps: int
    role: Role
    curve: list[dict[str, Any]]
    finals: dict[str, dict[str, Any]]
    record: dict[str, Any]

    def last(self, final: str | None = None) -> dict[str, Any]:
        """The last evaluation, or the final one of that name."""
        return self.curve[-1] if final is None else self.finals[final]

    def reached(self, measure: Measure, target: float, of: Cost, closing: bool = False) -> float | None:
        """Steps, tokens or seconds until the measure held a target; None where it never did, or without a count.

        It is held where two evaluations after one another are as good as the target or better, and reached on the
        straight line to the first of the two from the evaluation before. Closing: the last one stands by itself.
        """
        if any(of not in point for point in self.curve):
            return None
        good = [measure.good(point[measure.key]) - measure.good(target) for point in self.curve]
        good += good[-1:] if closing else []
        for i in range(len(good) - 1):
            if good[i] >= 0 and good[i + 1] >= 0:
                if i == 0:
                    return float(self.curve[0][of])
                # From an infinitely bad evaluation no line leads up.
                share = 1.0 if math.isinf(good[i - 1]) else -good[i - 1] / (good[i] - good[i - 1])
                before, after = (float(point[of]) for point in self.curve[i - 1 : i + 1])
                return before + share * (after - before)
        return None

    def held(self, measure: Measure) -> list[float]:
        """The best level that two evaluations after one another have held by the second, the third, ... of them."""
        values, found = [point[measure.key] for point in self.curve], []
        for before, after in pairwise(values):
            level = min(before, after, key=measure.good)
            found.append(max(found[-1], level, key=measure.good) if found else level)
        return found

    def mean_value(self, measure: Measure) -> float:
        """The measure's mean over the steps of training: the area below its curve, over its width."""
        steps, values = ([float(point[key]) for point in self.curve] for key in ("step", measure.key))
        return float(scipy.integrate.trapezoid(values, steps) / (steps[-1] - steps[0]))


@dataclass(frozen=True)
class Paired:
    """A difference, or a ratio, over pairs of runs of one seed.

    Attributes:
        estimate: its mean and interval, infinite for one pair.
        pairs: how many.
        better: whether it speaks for the arm where the whole interval lies above `level`, or below it.
        level: of no difference.
    """

    estimate: Estimate
    pairs: int
    better: Literal["above", "below"] = "above"
    level: float = 0.0

    @property
    def sign(self) -> int:
        """1 where the interval speaks for the arm, -1 against it, 0 where it does neither."""
        above, below = self.estimate.low > self.level, self.estimate.high < self.level
        return (int(above) - int(below)) * (1 if self.better == "above" else -1)

    @property
    def is_claim(self) -> bool:
        """Whether there are enough pairs for more than an indication."""
        return self.pairs >= CLAIM

    def verdict(self, better: str, worse: str) -> str:
        """In words, with a mark where there are too few pairs for a claim; one pair says nothing, nor does what is no
        finite number.
        """
        if self.pairs == 1:
            return ONE_SEED
        if not math.isfinite(self.estimate.value):
            return NOT_FINITE
        word = {1: better, -1: worse, 0: "not distinguishable"}[self.sign]
        return word if self.is_claim else f"{word} (indication)"


@dataclass(frozen=True)
class Speed:
    """What an arm needs to reach a target, and how much less than the control: runs of one budget.

    Attributes:
        arm: its name.
        steps: the budget.
        target: of the measure; None for the weaker end of each pair (`Results.to_weaker_end`).
        costs: by what is counted, of each seed; None where the target was not reached.
        control: the same of the control, over the same seeds.
        ends: of the weaker end: the arm or the control, where it is that one's in all pairs.
    """

    arm: str
    steps: int
    target: float | None
    costs: Costs
    control: Costs
    ends: str | None = None

    @property
    def reached(self) -> tuple[int, int]:
        """Seeds that reached the target, and all."""
        values = list(self.costs["step"].values())
        return sum(value is not None for value in values), len(values)

    def mean(self, of: Cost) -> float | None:
        """Mean cost over the seeds, where all reached the target."""
        values = [value for value in self.costs[of].values() if value is not None]
        return float(np.mean(values)) if values and len(values) == len(self.costs[of]) else None

    def ratio(self, of: Cost = "step") -> Paired | None:
        """The control's cost over the arm's: above 1, the arm is faster. None unless all pairs reached the target.

        The geometric mean over the pairs, with the t interval of the mean logarithm.
        """
        logs = []
        for seed, other in self.control[of].items():
            own = self.costs[of].get(seed)
            if own is None or other is None or own <= 0 or other <= 0:
                return None
            logs.append(math.log(other / own))
        return Paired(mean_of(logs).map(exp), len(logs), level=1.0) if logs else None

    def verdict(self, of: Cost = "step") -> str:
        """faster, slower, not distinguishable; without a ratio, why: who did not reach the target, or that it was met
        before the first step. Nothing where no seed is shared.
        """
        if not self.control["step"]:
            return ""
        if found := self.ratio(of):
            return found.verdict("faster", "slower")
        own, other = (
            [side["step"].get(seed) for seed in self.control["step"]] for side in (self.costs, self.control)
        )
        if None in own:
            return "target not reached"
        return "target not reached by the control" if None in other else "target met at the start"


@dataclass(frozen=True)
class Matched:
    """An arm at the end of one budget against the control at the end of another.

    Attributes:
        arm: its name.
        steps: its budget.
        control_steps: the control's.
        difference: arm less control.
    """

    arm: str
    steps: int
    control_steps: int
    difference: Paired

    @property
    def ratio(self) -> float:
        """How many times fewer steps the arm had."""
        return self.control_steps / self.steps

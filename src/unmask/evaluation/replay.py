"""How often is advice right? The rule of `unmask.evaluation.advice`, replayed on the early part of saved curves.

A comparison is the runs of one study at one budget. A probe sees their held-out loss after a share of the steps. What
it advises is held against the end of the same runs, by the study's own measure: is it the best of the arms, or within
noise of the best? Noise of several seeds is what the rule does not tell apart (pairs are the seeds: rows are not
saved); of one seed, the intervals of the two evaluations together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unmask.evaluation.advice import Advice, advise_by
from unmask.evaluation.results import Results
from unmask.evaluation.speedup import MEASURES, Run, interval_of


@dataclass(frozen=True)
class Comparison:
    """Runs of one study and budget.

    Attributes:
        results: of the study.
        steps: the budget.
        arms: runs by arm and seed; all arms have all of the seeds.
    """

    results: Results
    steps: int
    arms: dict[str, dict[int, Run]]

    @property
    def seeds(self) -> list[int]:
        """Those that all arms have."""
        return sorted(next(iter(self.arms.values())))

    @property
    def best(self) -> tuple[str, set[str]]:
        """The arm that ends best, and all within noise of it, itself among them."""
        measure = self.results.measure
        last = {arm: [runs[seed].last() for seed in self.seeds] for arm, runs in self.arms.items()}
        found = advise_by({arm: [[-measure.good(p[measure.key])] for p in points] for arm, points in last.items()})
        near = set(found.tied)
        if found.seeds == 1:
            reach = {arm: _reach(interval_of(points[0], measure)) for arm, points in last.items()}
            near = {g.arm for g in found.gaps if g.behind.value <= math.hypot(reach[g.arm], reach[found.first])}
        return found.first, near | {found.first}

    def advised(self, share: float, seeds: Sequence[int]) -> Advice:
        """What a probe of some seeds advises after a share of the steps."""
        return advise_by({arm: [[_loss(runs[s], share)] for s in seeds] for arm, runs in self.arms.items()})


@dataclass(frozen=True)
class Replayed:
    """A probe, and what became of its advice.

    Attributes:
        advice: what it advised.
        is_best: whether the advised arm ended best.
        is_near: whether it ended best, or within noise of the best.
    """

    advice: Advice
    is_best: bool
    is_near: bool


def comparisons_of(results: Results) -> list[Comparison]:
    """One for each budget at which two arms or more have the control's seeds; other arms are left out."""
    found = []
    for steps in results.budgets(results.control):
        seeds = results.of_seed(results.control, steps).keys()
        arms = {arm: results.of_seed(arm, steps) for arm in results.arms}
        arms = {arm: runs for arm, runs in arms.items() if runs.keys() == seeds}
        if len(arms) > 1:
            found.append(Comparison(results, steps, arms))
    return found


def replay(comparison: Comparison, share: float, *, single: bool) -> Iterator[Replayed]:
    """Probe a comparison: with each seed by itself, or with all of them where there are several.

    Args:
        comparison: runs of one study and budget.
        share: of the steps that the probe sees.
        single: each seed by itself.
    """
    best, near = comparison.best
    groups = [[seed] for seed in comparison.seeds] if single else [comparison.seeds]
    for seeds in groups if single or len(comparison.seeds) > 1 else ():
        advice = comparison.advised(share, seeds)
        yield Replayed(advice, advice.first == best, advice.first in near)


def _loss(run: Run, share: float) -> float:
    """Held-out loss at the evaluation next to a share of the steps."""
    point = min(run.curve, key=lambda point: abs(point["step"] - share * run.steps))
    return float(next(point[measure.key] for measure in reversed(MEASURES) if measure.key in point))


def _reach(interval: Sequence[float] | None) -> float:
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2

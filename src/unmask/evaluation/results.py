"""The results of a study, from its records alone (`unmask.runs.study` writes them)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from unmask.config import nearest, require
from unmask.evaluation.estimate import mean_of
from unmask.evaluation.speedup import (
    MEASURES,
    Cost,
    Costs,
    Matched,
    Measure,
    Paired,
    Role,
    Run,
    Speed,
    interval_of,
    measure_of,
)

RECORDS = "records.jsonl"
COMMAND, WEIGHTS = "command", "weights"
"""Keys of a record's provenance that tell of one run alone: the command line, and the hash of the last weights."""
NEEDED = ("study", "control", "arm", "seed", "steps", "role", "curve", "finals")
"""What every record has."""
CURVE = 6
"""Fewest evaluations of a run whose time to its end is compared."""
TARGETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def read_records(path: str | Path, role: Role | None = None) -> list[dict[str, Any]]:
    """Read records.jsonl, or that of a folder: those of one role, or all.

    Raises:
        ValueError: for a file that holds no records of a study.
    """
    path = Path(path)
    path = path / RECORDS if path.is_dir() else path
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no records of a study: {error!r}") from None
    for number, record in enumerate(records, 1):
        lacking = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
        require(not lacking, f"{path} holds no records of a study: line {number} lacks {', '.join(lacking)}")
    return [record for record in records if role in (None, record["role"])]


@dataclass(frozen=True)
class Report:
    """How a study's report shows it; its records carry this.

    Attributes:
        measure: number of the evaluations that runs are compared by. None: the first of `MEASURES` that is there.
        title: of page and figure. Empty: one made of the study's name and its data.
        rises: whether more is better of a measure that is none of `MEASURES`.
    """

    measure: str | None = None
    title: str = ""
    rises: bool = False


@dataclass(frozen=True)
class Results:
    """The runs of a study.

    Attributes:
        name: of the study.
        control: the arm that the others are compared with.
        runs: in the order of the study's arms.
        measure: by which they are compared.
        title: of their report, where the study gives one.
    """

    name: str
    control: str
    runs: tuple[Run, ...]
    measure: Measure
    title: str = ""

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]], measure: str | None = None, rises: bool = False) -> Results:
        """From records of one study.

        Args:
            records: what `read_records` gave, those of one role.
            measure: name of a number in every evaluation. By default the one of the study's `Report`, or the first
                of `MEASURES` that is there.
            rises: whether more is better of that measure, where it is none of `MEASURES`.

        Raises:
            ValueError: for records of no study or of several, or without the measure.
        """
        names = {(record["study"], record["control"]) for record in records}
        require(len(names) > 0, "no run is whole yet")
        require(len(names) == 1, f"records of one study are needed, with one control; got those of {sorted(names)}")
        (name, control) = names.pop()
        runs = tuple(
            Run(
                arm=record["arm"],
                seed=record["seed"],
                steps=record["steps"],
                role=record["role"],
                curve=record["curve"],
                finals={final: found["result"] for final, found in record["finals"].items()},
                record=record,
            )
            for record in records
        )
        require(
            any(run.arm == control for run in runs),
            f"no run of the control '{control}' of the study '{name}' is whole yet, so there is nothing to compare "
            f"with: run it too (--only {control})",
        )
        empty = [run.arm for run in runs if not run.curve]
        require(not empty, f"runs of {', '.join(sorted(set(empty)))} have no evaluation: train with evaluate_every")
        runs = _on_one_grid(runs)
        told = [{k for k, v in point.items() if is_number(v)} for run in runs for point in run.curve]
        shared = set.intersection(*told)
        shared -= {"step", "epoch", *get_args(Cost)}
        known = [m for m in MEASURES if m.key in shared]
        report = Report(**next((record["report"] for record in records if "report" in record), {}))
        measure, rises = (measure, rises) if measure else (report.measure, report.rises)
        if measure is None:
            require(
                len(known) > 0, f"the evaluations have none of {', '.join(m.key for m in MEASURES)}: name a measure"
            )
            return cls(name, control, runs, known[0], report.title)
        some = "not every" if measure in set.union(*told) else "no"
        require(measure in shared, f"{some} evaluation has '{measure}'{nearest(measure, sorted(shared))}")
        own = Measure(measure, f"{measure} ({'more' if rises else 'less'} is better)", rises)
        found = next((m for m in known if m.key == measure), own)
        return cls(name, control, runs, found, report.title)

    @property
    def arms(self) -> list[str]:
        """Names in order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def others(self) -> list[str]:
        """Names of all but the control."""
        return [arm for arm in self.arms if arm != self.control]

    @property
    def shared(self) -> str:
        """What runs of one seed have in common, in words: arms may change more than how they mask."""
        configs = [run.record["config"] for run in self.runs]

        def alike(*parts: str) -> bool:
            return all(_alike(config.get(part), configs[0].get(part)) for config in configs for part in parts)

        common = [
            *(["data order"] if alike("data") else []),
            *(["weights at the start"] if alike("model", "start") else []),
            *(["validation noise"] if alike("data", "evaluation") else []),
        ]
        return " and ".join(", ".join(common).rsplit(", ", 1)) if common else "their seed alone"

    def budgets(self, arm: str | None = None) -> list[int]:
        """Of all runs, or of an arm's, rising."""
        return sorted({run.steps for run in self.runs if arm in (None, run.arm)})

    def of_seed(self, arm: str, steps: int) -> dict[int, Run]:
        """Runs of an arm at a budget, by seed."""
        return {run.seed: run for run in self.runs if (run.arm, run.steps) == (arm, steps)}

    def values(
        self,
        arm: str,
        steps: int,
        measure: Measure | None = None,
        final: str | None = None,
        stratum: str | None = None,
    ) -> dict[int, float]:
        """A measure at the end of an arm's runs, by seed: of the last evaluation, a final one, or a stratum of it."""
        measure, found = measure or self.measure, {}
        for seed, run in self.of_seed(arm, steps).items():
            last = run.last(final) if final is None or final in run.finals else {}
            last = last if stratum is None else last.get("strata", {}).get(stratum, {})
            if measure.key in last:
                found[seed] = float(last[measure.key])
        return found

    def measure_in(self, final: str | None) -> Measure | None:
        """What a final evaluation is compared by, None where it has no such number; of None, the study's measure."""
        found = (measure_of(run.finals[final]) for run in self.runs if final in run.finals)
        return self.measure if final is None else next((measure for measure in found if measure is not None), None)

    def ranked(self, steps: int, final: str | None = None) -> list[tuple[str, Paired]]:
        """The other arms with their differences from the control at a budget, the best first."""
        measure = self.measure_in(final)
        if measure is None:
            return []
        ends = {arm: self.values(arm, steps, measure, final) for arm in [*self.arms, self.control]}
        found = {arm: self.difference(ends[arm], ends[self.control], measure) for arm in self.others}
        differing = [(arm, difference) for arm, difference in found.items() if difference is not None]
        return sorted(differing, key=lambda pair: measure.good(pair[1].estimate.value), reverse=True)

    def difference(
        self, arm: Mapping[int, float], control: Mapping[int, float], measure: Measure | None = None
    ) -> Paired | None:
        """Arm less control over the seeds that both have; None where they share none."""
        shared = sorted(arm.keys() & control.keys())
        if not shared:
            return None
        found = mean_of([arm[seed] - control[seed] for seed in shared])
        return Paired(found, len(shared), "above" if (measure or self.measure).rises else "below")

    def area(self, arm: str, steps: int) -> Paired | None:
        """Difference of the measure's mean over the steps: the area between the curves, over its width."""
        own, control = (
            {
                seed: run.mean_value(self.measure)
                for seed, run in self.of_seed(name, steps).items()
                if len(run.curve) > 1
            }
            for name in (arm, self.control)
        )
        return self.difference(own, control)

    def targets(self, steps: int) -> list[float]:
        """Levels to compare at, the easiest first: none that a run begins with, none that no run holds.

        Of shares, `TARGETS`; else what all runs of the control held by a quarter, half, three quarters and the end of
        their evaluations. Neighbours lie further apart than a level is known (`_unsure`): one level counts once.
        """
        runs = [run for run in self.runs if run.steps == steps]
        key, good = self.measure.key, self.measure.good
        if self.measure.is_share:
            levels = list(TARGETS)
        else:
            held = [run.held(self.measure) for run in self.of_seed(self.control, steps).values()]
            last = min(map(len, held), default=0) - 1
            places = {round(last * part) for part in (0.25, 0.5, 0.75, 1.0)} if last >= 0 else ()
            levels = [min((values[i] for values in held), key=good) for i in places]
        apart, kept = self._unsure(steps), []
        for level in sorted(set(levels), key=good, reverse=True):
            begun = any(good(run.curve[0][key]) >= good(level) for run in runs)
            held = any(run.reached(self.measure, level, "step") is not None for run in runs)
            if held and not begun and (not kept or abs(kept[-1] - level) >= apart):
                kept.append(level)
        return kept[::-1]

    def _unsure(self, steps: int) -> float:
        """Mean width of a level's interval along the curves of a budget: 0 where there is nothing to tell it from.

        The wider of two: of an evaluation over its rows or puzzles, where it has an interval; of an arm's mean over
        seeds, where there are three at least.
        """
        runs = [run for run in self.runs if run.steps == steps]
        own = [
            found[1] - found[0]
            for run in runs
            for point in run.curve[1:]
            if (found := interval_of(point, self.measure)) is not None
        ]
        over = []
        for curves in ([run.curve for run in self.of_seed(arm, steps).values()] for arm in self.arms):
            for points in zip(*(curve[1:] for curve in curves), strict=False) if len(curves) > 2 else ():
                found = mean_of([point[self.measure.key] for point in points])
                over.append(found.high - found.low)
        return max(float(np.mean(widths)) if widths else 0.0 for widths in (own, over))

    def speeds(self, steps: int, targets: Sequence[float] | None = None) -> list[Speed]:
        """Every arm's cost of every target, at one budget; the control's among them.

        Args:
            steps: the budget.
            targets: levels. By default `targets`, and the weaker end of every pair (`to_weaker_end`).
        """
        found = []
        for target in self.targets(steps) if targets is None else targets:
            for arm in self.arms:
                runs = self.of_seed(arm, steps)
                control = {s: run for s, run in self.of_seed(self.control, steps).items() if s in runs}
                if runs:
                    own, other = (self._costs(side, dict.fromkeys(side, target)) for side in (runs, control))
                    found.append(Speed(arm, steps, target, own, other))
        ends = [self.to_weaker_end(arm, steps) for arm in self.arms] if targets is None else []
        told = [speed for speed in ends if speed is not None]
        return [*found, *told] if any(speed.arm != self.control for speed in told) else found

    def to_weaker_end(self, arm: str, steps: int) -> Speed | None:
        """What an arm and the control need to come to where the worse of the two ends, each pair by itself.

        Both ends reach that level, so every pair has a ratio, and turning arm and control round turns it round: two
        arms of one law are not told apart. None without a shared seed, with fewer than `CURVE` evaluations, which
        make the time a matter of the line between them, and where a run begins as good.
        """
        runs, control = self.of_seed(arm, steps), self.of_seed(self.control, steps)
        pairs = {seed: (run, control[seed]) for seed, run in runs.items() if seed in control}
        key, good = self.measure.key, self.measure.good
        if not pairs or any(len(run.curve) < CURVE for pair in pairs.values() for run in pair):
            return None
        levels = {seed: min((run.curve[-1][key] for run in pair), key=good) for seed, pair in pairs.items()}
        if any(good(run.curve[0][key]) >= good(levels[seed]) for seed, pair in pairs.items() for run in pair):
            return None
        weaker = {self.control if levels[s] == pair[1].curve[-1][key] else arm for s, pair in pairs.items()}
        sides = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
        own, other = (self._costs(of_seed, levels, closing=True) for of_seed in sides)
        return Speed(arm, steps, None, own, other, ends=weaker.pop() if len(weaker) == 1 else None)

    def _costs(self, runs: Mapping[int, Run], levels: Mapping[int, float], closing: bool = False) -> Costs:
        """By what is counted, when the run of each seed reached its level."""
        return {
            of: {seed: run.reached(self.measure, levels[seed], of, closing) for seed, run in runs.items()}
            for of in get_args(Cost)
        }

    def matched(self, measure: Measure | None = None, final: str | None = None) -> list[Matched]:
        """Every arm at a budget against the control at every budget as large or larger."""
        found = []
        for arm in self.others:
            for steps in self.budgets(arm):
                for horizon in self.budgets(self.control):
                    ends = self.values(arm, steps, measure, final), self.values(self.control, horizon, measure, final)
                    difference = self.difference(*ends, measure)
                    if horizon >= steps and difference is not None:
                        found.append(Matched(arm, steps, horizon, difference))
        return found


def _on_one_grid(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """The runs with those evaluations that all of their budget have, and each its last.

    What is evaluated seldom is seen late to have held a target, and its area is that of longer lines.
    """
    steps_of: dict[int, set[int]] = {}
    for run in runs:
        own = {point["step"] for point in run.curve}
        steps_of[run.steps] = steps_of.get(run.steps, own) & own
    return tuple(
        replace(run, curve=[p for p in run.curve[:-1] if p["step"] in steps_of[run.steps]] + run.curve[-1:])
        for run in runs
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether two saved configs say the same; what only one has is a field that the other's time did not know."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one[name], other[name]) for name in one.keys() & other.keys())
    return bool(one == other)


def is_number(value: Any) -> bool:
    """Whether a result is a figure that can be averaged."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)

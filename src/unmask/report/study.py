"""The report of a study: a verdict for every arm, tables and a figure, from its saved records alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.config import require
from unmask.evaluation.estimate import Estimate, deviation_of, mean_of
from unmask.evaluation.results import COMMAND, RECORDS, WEIGHTS, Results, is_number
from unmask.evaluation.speedup import CLAIM, Measure, Speed, interval_of
from unmask.report import written
from unmask.report.costs import costs
from unmask.report.curves import plot_results, written_target
from unmask.report.grid import Grid

SUMMARY, CURVES = "summary.md", "curves.png"
MANY = 5
"""Comparisons, from which on it is said how many of them chance alone tells apart."""


@dataclass(frozen=True)
class Finding:
    """What was found of an arm at a budget.

    Attributes:
        arm: its name.
        steps: the budget.
        pairs: seeds that it shares with the control.
        parts: what was found, and in words what that says; the most important one first.
        sign: of the first part: 1 speaks for the arm, -1 against it, 0 for neither.
    """

    arm: str
    steps: int
    pairs: int
    parts: tuple[tuple[str, str], ...]
    sign: int

    @property
    def seeds(self) -> str:
        """How many pairs there are, in words."""
        return f"{self.pairs} seed{'s' * (self.pairs > 1)}"

    def __str__(self) -> str:
        told = (f"{what}: {word}" if word and self.pairs > 1 else what for what, word in self.parts)
        return f"{self.arm}, {self.steps} steps, {self.seeds}: {'; '.join(told)}"


def findings(results: Results) -> list[Finding]:
    """For each arm at each budget: whether it is faster than the control, by how much, and where it ends.

    At a budget that the control has not, the arm is held against the control's next larger one.
    """
    found, unit = [], " points" if results.measure.is_share else ""
    for (arm, steps), group in itertools.groupby(results.matched(), lambda m: (m.arm, m.steps)):
        first = min(group, key=lambda m: m.control_steps)
        if first.control_steps > steps:
            what = f"{written.difference(first.difference, results.measure)}{unit}"
            what += f" with {first.ratio:.3g}x fewer steps than {results.control}'s {first.control_steps}"
            parts = ((what, written.verdict(first.difference)),)
            found.append(Finding(arm, steps, first.difference.pairs, parts, first.difference.sign))
    for steps in results.budgets(results.control):
        speeds = results.speeds(steps)
        for arm in (arm for arm in results.others if results.of_seed(arm, steps)):
            speed = _headline([s for s in speeds if s.arm == arm])
            end = results.difference(results.values(arm, steps), results.values(results.control, steps))
            if end is None:
                continue
            what, sign = f"at the end {written.difference(end, results.measure)}{unit}", end.sign
            parts = [(what, written.verdict(end))]
            if speed is not None:
                target, ratio = _where(speed, results), speed.ratio()
                if ratio is None:
                    parts.insert(0, (f"{speed.verdict()} ({target})", ""))
                    sign = 0
                else:
                    parts.insert(0, (f"{written.times(ratio)} steps to {target}", speed.verdict()))
                    sign = ratio.sign
            found.append(Finding(arm, steps, end.pairs, tuple(parts), sign))
    return found


def verdicts(results: Results) -> list[str]:
    """One sentence for each arm at each budget: whether it is faster than the control, and by how much."""
    return [str(finding) for finding in findings(results)]


def _headline(speeds: Sequence[Speed]) -> Speed | None:
    """To the weaker end; without one the hardest target that all pairs reached, or the easiest target."""
    whole = [speed for speed in speeds if speed.ratio() is not None]
    return whole[-1] if whole else speeds[0] if speeds else None


def ends(results: Results, final: str | None = None) -> list[Grid]:
    """The measure at the end of every budget, overall and in strata, and the differences from the control.

    Args:
        results: of a study.
        final: name of a final evaluation. None: the last evaluation of training.
    """
    grids, at = [], "at the end" if final is None else f"of {final}"
    runs = [run for run in results.runs if final is None or final in run.finals]
    measure = results.measure_in(final)
    if measure is None:
        return []
    named = dict.fromkeys(name for run in runs for name in run.last(final).get("strata", {}))
    strata = [name for name in named if name != "all"]  # a task's only stratum is no part of it
    columns = [
        None,
        *(s for s in strata if any(measure.key in run.last(final).get("strata", {}).get(s, {}) for run in runs)),
    ]
    names = ["all" if column is None else column for column in columns]
    for steps in sorted({run.steps for run in runs}):
        arms = [arm for arm in results.arms if results.values(arm, steps, measure, final)]
        rows = []
        for arm in arms:
            cells = (_end(results, arm, steps, measure, final, column) for column in columns)
            rows.append([arm, str(len(results.values(arm, steps, measure, final))), *cells])
        unit = ", %" if measure.is_share else ""
        grids.append(
            Grid(
                f"{measure.heading} {at}, {steps} steps{unit}",
                ["arm", "seeds", *names],
                rows,
            )
        )
        rows = []
        for arm, whole in results.ranked(steps, final):
            if whole.pairs > 1:
                found = [
                    results.difference(
                        results.values(arm, steps, measure, final, column),
                        results.values(results.control, steps, measure, final, column),
                        measure,
                    )
                    for column in columns[1:]
                ]
                cells = (written.difference(d, measure) if d else "" for d in (whole, *found))
                rows.append([arm, *cells, written.verdict(whole)])
        if rows:
            title = f"The same less {results.control}'s, paired by seed{', points' if measure.is_share else ''}"
            grids.append(Grid(title, ["arm", *names, "verdict"], rows))
    return grids


def _where(speed: Speed, results: Results) -> str:
    """A target as a sentence names it."""
    if speed.target is None:
        return f"{speed.ends}'s end" if speed.ends else "the weaker end"
    return written_target(speed.target, results)


def matched(results: Results, final: str | None = None) -> list[Grid]:
    """Every arm at the end of a budget against the control at the end of a larger one."""
    measure = results.measure_in(final)
    found = [] if measure is None else results.matched(measure, final)
    if measure is None or all(m.control_steps == m.steps for m in found):
        return []
    rows = []
    for m in found:
        ends = [written.difference(m.difference, measure), str(m.difference.pairs), written.verdict(m.difference)]
        rows.append([m.arm, str(m.steps), str(m.control_steps), f"{m.ratio:.3g}x", *ends])
    head = ["arm", "its steps", f"{results.control}'s steps", "fewer", "difference", "seeds", "verdict"]
    at = "last evaluation" if final is None else final
    note = "Every run's learning rate is annealed over its own steps."
    return [Grid(f"Matched horizons: {measure.label}, {at}", head, rows, note)] if rows else []


def commands_of(results: Results) -> list[str]:
    """The command lines that made the runs, where they were kept."""
    found = (run.record.get("provenance", {}).get(COMMAND) for run in results.runs)
    return list(dict.fromkeys(command for command in found if command))


def spread(results: Results) -> list[Grid]:
    """What differs from run to run: deviation over seeds, mean over training, time."""
    rows, measure = [], results.measure
    for arm in results.arms:
        for steps in results.budgets(arm):
            values = list(results.values(arm, steps).values())
            runs = results.of_seed(arm, steps).values()
            area = None if arm == results.control else results.area(arm, steps)
            seconds = [float(run.curve[-1]["seconds"]) for run in runs]
            tokens = sum(run.curve[-1].get("tokens", 0) for run in runs)
            rows.append(
                [
                    *(arm, str(steps), str(len(values))),
                    written.interval(deviation_of(values), measure, signed=False) if len(values) > 1 else "",
                    "" if area is None else written.difference(area, measure),
                    written.amount(float(np.mean(seconds))),
                    f"{tokens / sum(seconds):,.0f}" if tokens and sum(seconds) else "",
                ]
            )
    unit = ", points" if measure.is_share else ""
    head = ["arm", "steps", "seeds", f"deviation over seeds{unit}", f"area between the curves{unit}"]
    return [
        Grid("Run to run", [*head, "seconds", "tokens/s"], rows, "Area: mean difference over the steps of training.")
    ]


def numbers(results: Results, final: str) -> list[Grid]:
    """What else a final evaluation gave, mean over seeds."""
    runs = [run for run in results.runs if final in run.finals]
    measure = results.measure_in(final)
    known = {"interval", "rows", "puzzles", measure.key if measure else ""}
    keys = dict.fromkeys(k for run in runs for k, v in run.last(final).items() if k not in known and is_number(v))
    rows = []
    for arm, steps in dict.fromkeys((run.arm, run.steps) for run in runs):
        found = [run.last(final) for run in results.of_seed(arm, steps).values() if final in run.finals]
        values = ([point[key] for point in found if key in point] for key in keys)
        rows.append([arm, str(steps), str(len(found)), *(f"{np.mean(v):.4g}" if v else "" for v in values)])
    return [Grid(f"More of {final}, mean over seeds", ["arm", "steps", "seeds", *keys], rows)] if keys else []


def protocol(results: Results) -> list[Grid]:
    """What the runs were made with; a line for each value where they differ."""
    rows: dict[tuple[str, str], None] = {}
    for run in results.runs:
        made = {k: v for k, v in run.record.get("provenance", {}).items() if k not in (COMMAND, WEIGHTS)}
        made["parameters"] = run.record.get("parameters")
        training = run.record.get("training", {})
        made |= {name: training[name] for name in ("batch_size", "learning_rate", "schedule") if name in training}
        rows |= dict.fromkeys(
            (name.replace("_", " "), str(value)) for name, value in made.items() if value is not None
        )
    return [Grid("Protocol", ["what", "value"], sorted(rows))] if rows else []


def grids_of(results: Results) -> list[Grid]:
    """Every table of a study, in the order of a page."""
    finals = list(dict.fromkeys(name for run in results.runs for name in run.finals))
    made = [*ends(results), *costs(results), *matched(results)]
    for final in finals:
        made += [*ends(results, final), *matched(results, final), *numbers(results, final)]
    return [*made, *spread(results), *protocol(results)]


def write_report(results: Results, out: Path, screened: Results | None = None, title: str = "") -> list[Grid]:
    """Write summary.md and curves.png into a folder; return the tables.

    Args:
        results: the runs that are compared.
        out: the folder.
        screened: the runs that arms were chosen by.
        title: of page and figure; by default what `title_of` says.
    """
    title, made = title or title_of(results), grids_of(results)
    out.mkdir(parents=True, exist_ok=True)
    plot_results(results, out / CURVES, title=f"{title}: {seeds_of(results)}")
    lines = [f"# {title}", "", *(f"- {line}" for line in verdicts(results)), "", caution(results), ""]
    lines += [f"![learning curves]({CURVES})", "", *(grid.markdown() for grid in made)]
    if screened is not None:
        lines += ["# Screening: other seeds, to choose by", "", *(grid.markdown() for grid in ends(screened))]
        lines += [grid.markdown() for grid in costs(screened)]
    (out / SUMMARY).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return made


def title_of(results: Results) -> str:
    """What the study says, or its name, and the data where that does not tell."""
    if results.title:
        return results.title
    data = results.runs[0].record.get("config", {}).get("data") or {}
    named = next((data[name] for name in ("source", "corpus", "path") if data.get(name)), None)
    kind = str(data.get("type", "")).split(":")[-1].removesuffix("Data")
    named = [named] if isinstance(named, str) else named or [kind]
    told = ", ".join(Path(name).name for name in named)
    return results.name if told.casefold() in ("", results.name.casefold()) else f"{results.name}: {told}"


def seeds_of(results: Results) -> str:
    """How many seeds were compared, in words."""
    counts = [len(results.of_seed(arm, steps)) for arm in results.arms for steps in results.budgets(arm)]
    low, high = min(counts), max(counts)
    count = f"{low} to {high} seeds" if low < high else "one seed" if low == 1 else f"{low} seeds"
    return count if low >= CLAIM else f"{count}, an indication"


def caution(results: Results) -> str:
    """How the numbers are to be read."""
    few = (
        "" if "indication" not in seeds_of(results) else f" Fewer than {CLAIM} seeds are an indication, not a proof."
    )
    told = sum(finding.pairs > 1 for finding in findings(results))
    many = f" Of {told} intervals {told / 20:.1f} are off by chance." if told >= MANY else ""
    return (
        f"Runs of one seed share {results.shared}. Intervals in brackets are of 95%: over seeds, t intervals of "
        f"paired differences; for one seed, over what was evaluated.{few}{many}"
    )


def _end(results: Results, arm: str, steps: int, measure: Measure, final: str | None, stratum: str | None) -> str:
    values = results.values(arm, steps, measure, final, stratum)
    if len(values) != 1:
        return written.interval(mean_of(list(values.values())), measure, signed=False) if values else ""
    ((seed, value),) = values.items()
    last = results.of_seed(arm, steps)[seed].last(final)
    own = interval_of(last if stratum is None else last["strata"][stratum], measure)
    return written.interval(Estimate(value, *(own or (-math.inf, math.inf))), measure, signed=False)


def found_in(folders: Iterable[Path]) -> list[Path]:
    """The folders with records, themselves or one level below; ValueError for one without, or that is not there."""
    found = []
    for folder in folders:
        require(folder.exists(), f"{folder} does not exist")
        here = [folder] if (folder / RECORDS).is_file() else sorted(p.parent for p in folder.glob(f"*/{RECORDS}"))
        require(len(here) > 0, f"{folder} holds no {RECORDS}: it is no study's folder, or it was not run yet")
        found += here
    return found

"""How often is `unmask advise` right? Its rule, replayed on the early part of the curves of saved studies.

    python -m experiments.advise

Each comparison is the runs of one study at one budget. A probe sees their held-out loss after a share of the steps,
with each seed by itself or with all of them (then the seeds are the pairs, as rows were not saved). What it advises
is held against the end of the same runs: is it the best of the arms, or within noise of the best? Noise of several
seeds is the paired interval of the rule; of one seed, the two evaluations' intervals together. Seeds that chose a
study's settings are replayed too. Puts the table into docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from experiments.publish import ROOT, publish
from unmask.evaluation.advice import Advice, advise_by
from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.evaluation.speedup import Run
from unmask.report.grid import Grid

SHARES = (0.1, 0.2, 0.3, 0.5)
Comparison = dict[str, dict[int, Run]]
"""Runs of one budget by arm and seed; every arm has all of the seeds."""


def comparisons() -> Iterator[tuple[str, Results, Comparison]]:
    """Those of all saved studies that have at least two arms; arms whose seeds are not the control's are left out."""
    for path in sorted((ROOT / "experiments").rglob(RECORDS)):
        try:
            records = {role: read_records(path, role) for role in ("compare", "screen")}
        except ValueError:
            continue  # records of something else
        for results in (Results.of(found) for found in records.values() if found):
            for steps in results.budgets(results.control):
                seeds = results.of_seed(results.control, steps).keys()
                arms = {arm: results.of_seed(arm, steps) for arm in results.arms}
                arms = {arm: runs for arm, runs in arms.items() if runs.keys() == seeds}
                if len(arms) > 1:
                    yield f"{results.name}, {steps} steps", results, arms


def early(run: Run, share: float) -> float:
    """Held-out loss at the evaluation next to a share of the steps."""
    point = min(run.curve, key=lambda point: abs(point["step"] - share * run.steps))
    return float(point["loss"] if "loss" in point else point["nats_per_token"])


def at_end(results: Results, arms: Comparison) -> tuple[str, set[str]]:
    """The best arm, and those within noise of it, by the study's measure."""
    measure = results.measure
    last = {arm: [run.last() for _, run in sorted(runs.items())] for arm, runs in arms.items()}
    ends = {arm: [[-measure.good(point[measure.key])] for point in points] for arm, points in last.items()}
    found = advise_by(ends)
    if found.seeds > 1:
        return found.first, {found.first, *found.tied}
    reach = {arm: _reach(points[0].get("interval")) for arm, points in last.items()}
    near = {gap.arm for gap in found.gaps if gap.behind.value <= math.hypot(reach[gap.arm], reach[found.first])}
    return found.first, {found.first, *near}


def _reach(interval: tuple[float, float] | None) -> float:
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2


def main() -> None:
    """Replay and publish."""
    every, rows = list(comparisons()), []
    probes = [(results, arms) for _, results, arms in every for _ in next(iter(arms.values()))]  # of one seed each
    guess = sum(1 / len(arms) for _, arms in probes) / len(probes)
    lucky = sum(len(at_end(results, arms)[1]) / len(arms) for results, arms in probes) / len(probes)
    for share in SHARES:
        for kind in ("one seed", "all seeds"):
            found: list[tuple[Advice, bool, bool]] = []
            for _, results, arms in every:
                best, near = at_end(results, arms)
                seeds = sorted(next(iter(arms.values())))
                groups = [[seed] for seed in seeds] if kind == "one seed" else [seeds] if len(seeds) > 1 else []
                for group in groups:
                    advice = advise_by(
                        {a: [[early(runs[seed], share)] for seed in group] for a, runs in arms.items()}
                    )
                    found.append((advice, advice.first == best, advice.first in near))
            sure = [(hit, close) for advice, hit, close in found if advice.sure]
            cells = [_of(found, 1), _of(found, 2), f"{len(sure)}", _of(sure, 0), _of(sure, 1)]
            rows.append([f"{share:.0%}" if kind == "one seed" else "", kind, str(len(found)), *cells])
    head = ["of the steps seen", "probe", "probes", "advised arm is best at the end", "or within noise of the best"]
    grid = Grid("", [*head, "sure", "of these best", "or within noise"], rows)
    studies = "; ".join(
        f"{name} ({len(arms)} arms, seeds: {len(next(iter(arms.values())))})" for name, _, arms in every
    )
    note = (
        f"{len(every)} comparisons: {studies}.\n\nAn arm chosen blindly would be the best in {guess:.0%} of the "
        f"probes of one seed and within noise of the best in {lucky:.0%}. One seed is never sure."
    )
    publish(ROOT / "docs" / "evaluation.md", {"advise": f"{grid.table}\n{note}"})


def _of(found: list[tuple], place: int) -> str:
    return f"{sum(row[place] for row in found)} of {len(found)}" if found else ""


if __name__ == "__main__":
    main()

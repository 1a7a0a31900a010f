"""Write summary.md and curves.png from records.jsonl: screening, paired differences, matched horizons, strata.

python -m experiments.puma_sudoku.report
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from experiments.common import Runs, against, grouped, mean_curve, plot_curves, read, table

HERE = Path(__file__).parent
CONTROL, TARGETS = "standard", (0.5, 0.6, 0.7, 0.8, 0.9)


def solved(run: dict[str, Any], policy: str = "confidence", stratum: str | None = None) -> float:
    """Share of solved puzzles at the end."""
    found = run["policies"][policy]
    return found["solved"] if stratum is None else found["strata"][stratum]


def versus(arm: dict[int, dict[str, Any]], control: dict[int, dict[str, Any]], policy: str = "confidence") -> str:
    """Paired difference in points over the seeds that both have."""
    return against(*({seed: solved(run, policy) for seed, run in runs.items()} for runs in (arm, control)))


def share(value: float) -> str:
    """In percent."""
    return f"{100 * value:.1f}"


def final_table(runs: Runs, steps: int) -> list[str]:
    """One row an arm: solved puzzles under confidence decoding at the end, and against the control."""
    lines = [f"| arm, {steps} steps | seeds | solved % | less {CONTROL}, points (95%) |", "|---|---|---|---|"]
    for arm, of_seed in sorted(runs.items(), key=lambda item: -mean(map(solved, item[1].values()))):
        against = versus(of_seed, runs[CONTROL]) if arm != CONTROL and CONTROL in runs else ""
        lines.append(f"| {arm} | {len(of_seed)} | {share(mean(map(solved, of_seed.values())))} | {against} |")
    return lines


def horizon_table(short: Runs, whole: Runs, steps: tuple[int, int]) -> list[str]:
    """Each arm's own shorter schedule against the control's whole one, on the seeds that both have."""
    rows = []
    for arm, of_seed in short.items():
        both = {seed: run for seed, run in of_seed.items() if seed in whole[CONTROL]}
        if both:
            rows.append([arm, len(both), share(mean(map(solved, both.values()))), versus(both, whole[CONTROL])])
    head = [f"arm at {steps[0]} steps", "seeds", "solved %", f"less {CONTROL} at {steps[1]} steps, points (95%)"]
    return table(head, rows)


def strata_table(runs: Runs) -> list[str]:
    """Solved puzzles for each policy and stratum, mean over seeds."""
    some = next(iter(next(iter(runs.values())).values()))
    strata = sorted(some["policies"]["confidence"]["strata"])
    lines = ["| arm | decoding | " + " | ".join(f"{s} clues" for s in strata) + " | all |"]
    lines.append("|---" * (len(strata) + 3) + "|")
    for arm, of_seed in runs.items():
        for policy in some["policies"]:
            every = list(of_seed.values())
            cells = [share(mean(solved(run, policy, s) for run in every)) for s in (*strata, None)]
            lines.append(f"| {arm} | {policy} | " + " | ".join(cells) + " |")
    return lines


def crossing_table(runs: Runs) -> list[str]:
    """Steps to a target on the mean curve, interpolated between evaluations."""
    lines = ["| arm | " + " | ".join(f"{100 * t:.0f}%" for t in TARGETS) + " |", "|---" * (len(TARGETS) + 1) + "|"]
    for arm, of_seed in runs.items():
        steps, _, curve = mean_curve(of_seed, "solved")
        best = np.maximum.accumulate(curve)
        reached = [str(round(np.interp(t, best, steps))) if best[-1] >= t else "" for t in TARGETS]
        lines.append(f"| {arm} | " + " | ".join(reached) + " |")
    return lines


def main() -> None:
    """Read the records, write the page."""
    records = read(HERE / "records.jsonl")
    lines = ["# PUMA on Sudoku", ""]
    screen = [r for r in records if r["screen"]]
    fresh = [r for r in records if not r["screen"]]
    for steps in sorted({r["steps"] for r in screen}):
        runs = grouped(r for r in screen if r["steps"] == steps)
        lines += ["## Screening: one seed, other puzzles than below", "", *final_table(runs, steps), ""]
        lines += ["Steps to a share of solved puzzles:", "", *crossing_table(runs), ""]
    budgets = sorted({r["steps"] for r in fresh})
    by_budget = {steps: grouped(r for r in fresh if r["steps"] == steps) for steps in budgets}
    for steps, runs in by_budget.items():
        lines += [f"## Fresh paired seeds, {steps} steps", "", *final_table(runs, steps), ""]
        lines += ["Steps to a share of solved puzzles, mean curve:", "", *crossing_table(runs), ""]
        lines += ["Solved % for each decoding policy and stratum, mean over seeds:", "", *strata_table(runs), ""]
    matched = [
        (x, y)
        for x in budgets
        for y in budgets
        if x < y <= 2 * x and CONTROL in by_budget[y] and len(by_budget[x]) > 1
    ]
    if matched:
        lines += ["## Matched horizons", "", "Every arm's schedule is annealed over its own budget.", ""]
    for short, whole in matched:
        lines += [*horizon_table(by_budget[short], by_budget[whole], (short, whole)), ""]
    if fresh:
        plot_curves(by_budget[budgets[-1]], "solved", "unseen puzzles solved, %", HERE / "curves.png", scale=100)
        lines += ["![learning curves](curves.png)", ""]
    (HERE / "summary.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

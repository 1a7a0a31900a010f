"""Tables of what it cost to reach a target, in steps, tokens and seconds."""

from __future__ import annotations

import math

from unmask.evaluation.results import Results
from unmask.evaluation.speedup import Cost, Speed
from unmask.report import written
from unmask.report.curves import written_target
from unmask.report.grid import Grid

UNEVEN = 1.5
"""Factor between the seconds that a step took in two runs of one arm, from which on seconds do not compare."""


def costs(results: Results) -> list[Grid]:
    """What it took every arm to reach each target, and how many times less than the control.

    Tokens are shown where they are not in proportion to steps.
    """
    grids = []
    for steps in results.budgets(results.control):
        rows, last = [], ""
        speeds = results.speeds(steps)
        if speeds and all(speed.arm == results.control for speed in speeds):
            continue  # nothing to compare it with at this budget
        named: dict[Cost, str] = {"step": "steps", "tokens": "tokens", "seconds": "seconds"}
        if not any(_of_its_own(speed, "tokens") for speed in speeds):
            del named["tokens"]
        for speed in speeds:
            target = written_target(speed.target, results)
            shown, last = "" if target == last else target, target
            got, count = speed.reached
            row = [shown, speed.arm, f"{got} of {count}"]
            for cost in named:
                mean, ratio = speed.mean(cost), None if speed.arm == results.control else speed.ratio(cost)
                row += ["" if mean is None else written.amount(mean), "" if ratio is None else written.ratio(ratio)]
            rows.append([*row, "" if speed.arm == results.control else speed.verdict()])
        columns = [cell for name in named.values() for cell in (name, "ratio")]
        head = ["target", "arm", "reached", *columns, "verdict, in steps"]
        note = f"Ratio: {results.control}'s cost over the arm's. A target is reached where two evaluations hold it."
        if any(row[0] == written_target(None, results) for row in rows):
            note += " Weaker end: where the worse run of each pair ends, its last evaluation by itself."
        if any(row[4].startswith("~") for row in rows):
            note += " ~: of one seed, so that nothing tells it from chance."
        if told := _uneven(results, steps):
            note += f" {told}"
        if not rows:
            note = "No run held any target that it did not begin with, so there is no time to compare."
        grids.append(Grid(f"Cost to reach a target, {steps} steps", head, rows, note))
    return grids


def _of_its_own(speed: Speed, cost: Cost) -> bool:
    """Whether a cost tells something else than steps: by more than 1%."""
    ratio, steps = speed.ratio(cost), speed.ratio("step")
    return (
        ratio is not None and steps is not None and abs(math.log(ratio.estimate.value / steps.estimate.value)) > 0.01
    )


def _uneven(results: Results, steps: int) -> str:
    """What to tell where runs of one arm, whose steps are the same work, took them at other speeds; else nothing."""
    factors = {}
    for arm in results.arms:
        last = [run.curve[-1] for run in results.of_seed(arm, steps).values()]
        each = [float(point["seconds"]) / max(1, point["step"]) for point in last]
        if each and min(each) > 0:
            factors[arm] = max(each) / min(each)
    arm = max(factors, key=factors.__getitem__, default=None)
    if arm is None or factors[arm] < UNEVEN:
        return ""
    longest = f"{factors[arm]:.1f} times as long as in others"
    return f"Seconds tell little: a step of {arm} took up to {longest} in some runs, as on a machine that is shared."

"""Tables for the terminal, from saved records only."""

from __future__ import annotations

from rich.table import Table

from unmask.evaluation.speedup import Arm, targets_reached
from unmask.evaluation.variance import Decomposition, Estimate


def final_table(arms: list[Arm]) -> Table:
    """Solved share of each arm at its end, overall and per stratum, with 95% Wilson intervals."""
    table = Table(title="unseen puzzles solved at the end (95% interval)", title_justify="left")
    table.add_column("stratum")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    n = arms[0].final["puzzles"]
    table.add_row(f"all ({n})", *(_share(arm.final) for arm in arms), style="bold")
    for name, first in arms[0].final["strata"].items():
        cells = (_share(arm.final["strata"][name]) for arm in arms)
        table.add_row(f"{name} ({first['puzzles']})", *cells)
    return table


def speed_table(arms: list[Arm]) -> Table:
    """Steps and seconds to common targets, the ratio to the first arm, and training speed."""
    first = arms[0].name
    table = Table(title=f"training cost to reach a target (ratio: {first} / arm)", title_justify="left")
    table.add_column("solved")
    for arm in arms:
        table.add_column(f"{arm.name}\nsteps", justify="right")
        table.add_column("\nseconds", justify="right")
    for arm in arms[1:]:
        table.add_column(f"{arm.name}\nsteps ratio", justify="right")
        table.add_column("\nseconds ratio", justify="right")
    for row in targets_reached(arms):
        cells = []
        for steps, seconds in zip(row.steps, row.seconds, strict=True):
            cells += ["not reached", ""] if steps is None else [str(steps), f"{seconds:.0f}"]
        for i in range(1, len(arms)):
            cells += [_ratio(row.ratio(i, "steps")), _ratio(row.ratio(i, "seconds"))]
        table.add_row(f"{row.target:.0%}", *cells)
    speeds = []
    for arm in arms:
        speeds += [f"{arm.tokens_per_second:,.0f}", ""]
    table.add_section()
    table.add_row("tokens/s", *speeds, *[""] * (2 * (len(arms) - 1)))
    return table


def _share(result: dict) -> str:
    low, high = result["interval"]
    return f"{result['solved']:.1%} ({low:.1%} to {high:.1%})"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def variance_table(arms: dict[str, dict[str, Decomposition]], of: str) -> Table:
    """A, B and C of each arm, as shares of the first arm's total, with 95% intervals.

    Args:
        arms: by name, what `decompose` returned.
        of: "loss" or "gradient".
    """
    names = list(arms)
    unit = arms[names[0]][of].parts
    table = Table(
        title=f"variance of the {of} at equal forwards ({names[0]} = 1, 95% interval)", title_justify="left"
    )
    table.add_column("arm")
    for column in ("A masks", "B rates", "A + B", "C rows", "A + B + C", "total, apart"):
        table.add_column(column, justify="right")
    for name in names:
        d = arms[name][of]
        table.add_row(
            name,
            _estimate(d.masks, unit),
            _estimate(d.rates, unit),
            f"{(d.masks.value + d.rates.value) / unit:.3f}",
            _estimate(d.rows, unit),
            f"{d.parts / unit:.3f}",
            _estimate(d.total, unit),
        )
    return table


def _estimate(estimate: Estimate, unit: float) -> str:
    return f"{estimate.value / unit:.3f} ({estimate.low / unit:.3f} to {estimate.high / unit:.3f})"

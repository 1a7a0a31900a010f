"""Tables for the terminal, from saved records only."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unmask.evaluation.estimate import Estimate
from unmask.evaluation.speedup import Arm, targets_reached
from unmask.evaluation.variance import Decomposition


def final_table(arms: list[Arm]) -> Table:
    """Solved share of each arm at its end, overall and per stratum, with 95% Wilson intervals."""
    table = Table(title="unseen puzzles solved at the end, % (95% interval)", title_justify="left")
    table.add_column("stratum")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    table.add_row(f"all ({arms[0].final['puzzles']})", *(_share(arm.final) for arm in arms), style="bold")
    for name, first in arms[0].final["strata"].items():
        table.add_row(f"{name} ({first['puzzles']})", *(_share(arm.final["strata"][name]) for arm in arms))
    table.add_section()
    table.add_row("training tokens/s", *(f"{arm.tokens_per_second:,.0f}" for arm in arms))
    table.add_row("training seconds", *(f"{arm.final['seconds']:.0f}" for arm in arms))
    return table


def speed_table(arms: list[Arm]) -> Table:
    """Steps and seconds to common targets, and their ratio to the first arm's."""
    table = Table(title=f"training cost to reach a target (ratio: {arms[0].name}'s / arm's)", title_justify="left")
    for column in ("solved", "arm", "steps", "ratio", "seconds", "ratio"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in targets_reached(arms):
        table.add_section()
        for i, (arm, steps, seconds) in enumerate(zip(arms, row.steps, row.seconds, strict=True)):
            target = f"{row.target:.0%}" if i == 0 else ""
            if steps is None or seconds is None:
                table.add_row(target, arm.name, "not reached")
            else:
                ratios = [_ratio(row.ratio(i, of)) if i else "" for of in ("steps", "seconds")]
                table.add_row(target, arm.name, str(steps), ratios[0], f"{seconds:.0f}", ratios[1])
    return table


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
        table.add_column(column, justify="right", min_width=5)
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
    return f"{estimate.value / unit:.3f}\n{estimate.low / unit:.2f}–{estimate.high / unit:.2f}"


def _share(result: dict[str, Any]) -> str:
    low, high = result["interval"]
    return f"{100 * result['solved']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"

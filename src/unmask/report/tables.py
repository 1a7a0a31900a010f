"""Tables for the terminal, from saved records only."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unmask.evaluation.estimate import Estimate
from unmask.evaluation.speedup import Arm, Measure, targets_reached
from unmask.evaluation.variance import Decomposition


def final_table(arms: list[Arm]) -> Table:
    """The measure of each arm at its end, overall and per stratum, with 95% intervals."""
    measure, final = arms[0].measure, arms[0].final
    unit = ", %" if measure.form.endswith("%") else ""
    table = Table(title=f"{measure.label} at the end{unit} (95% interval)", title_justify="left")
    table.add_column("stratum")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    table.add_row(f"all ({_count(final)})", *(_with_interval(arm.final, measure) for arm in arms), style="bold")
    for name, first in final.get("strata", {}).items():
        cells = (_with_interval(arm.final["strata"][name], measure) for arm in arms)
        table.add_row(f"{name} ({_count(first)})", *cells)
    table.add_section()
    table.add_row("training tokens/s", *(f"{arm.tokens_per_second:,.0f}" for arm in arms))
    table.add_row("training seconds", *(f"{arm.final['seconds']:.0f}" for arm in arms))
    return table


def speed_table(arms: list[Arm]) -> Table:
    """Steps and seconds to common targets, and their ratio to the first arm's."""
    table = Table(title=f"training cost to reach a target (ratio: {arms[0].name}'s / arm's)", title_justify="left")
    measure = arms[0].measure
    for column in (measure.key.split("_")[0], "arm", "steps", "ratio", "seconds", "ratio"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in targets_reached(arms):
        table.add_section()
        for i, (arm, steps, seconds) in enumerate(zip(arms, row.steps, row.seconds, strict=True)):
            target = format(row.target, measure.form.replace(".1%", ".0%")) if i == 0 else ""
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


def _count(result: dict[str, Any]) -> int:
    return result["puzzles"] if "puzzles" in result else result["rows"]


def _with_interval(result: dict[str, Any], measure: Measure) -> str:
    value, (low, high) = result[measure.key], result["interval"]
    if measure.form.endswith("%"):
        return f"{100 * value:.1f} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{value:{measure.form}} ({low:{measure.form}}–{high:{measure.form}})"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"

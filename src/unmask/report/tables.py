"""Tables for the terminal, from saved records only."""

from __future__ import annotations

from rich.table import Table

from unmask.evaluation.estimate import Estimate
from unmask.evaluation.variance import Decomposition


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
    for column in ("A masks", "B rates", "A + B", "C rows", "A + B + C", "total, apart", "over the squared mean"):
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
            f"{d.over_signal:.3g}",
        )
    return table


def _estimate(estimate: Estimate, unit: float) -> str:
    return f"{estimate.value / unit:.3f}\n{estimate.low / unit:.2f} to {estimate.high / unit:.2f}"

"""Tables and figures of evaluation records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from unmask.config import require
from unmask.evaluation.locality import Curve
from unmask.evaluation.records import Record, mismatches
from unmask.report.style import styled


def records_table(records: Sequence[Record], title: str = "") -> Table:
    """One line for each number, one column for each model.

    Numbers of different protocols do not compare, so the caption says in what the protocols differ.

    Raises:
        ValueError: for no record, or two records of one model under one name.
    """
    require(len(records) > 0, "there is no record to show")
    models, names = (list(dict.fromkeys(getattr(r, f) for r in records)) for f in ("model", "name"))
    cells = {(r.name, r.model): r for r in records}
    require(len(cells) == len(records), "two records of one model have the same name: give their models other names")
    found = mismatches(records)
    caption = f"DO NOT COMPARE: protocols differ in {'; '.join(found)}" if found else "one protocol; 95% intervals"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model, justify="right")
    for name in names:
        table.add_row(name, *(_cell(cells.get((name, model))) for model in models))
    return table


def plot_locality(curves: dict[str, Sequence[Curve]], path: str | Path, title: str = "") -> None:
    """Write `locality_figure` to a PNG or SVG, with a title above it."""
    figure = locality_figure(curves)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


@styled
def locality_figure(curves: dict[str, Sequence[Curve]], against: str | None = None) -> Figure:
    """Draw loss against rate, distance and radius, one panel each, lines coloured from the first to the last entry.

    Args:
        curves: by label (a model, a step of training), what `unmask.evaluation.locality` measured; a single one may
            go without.
        against: one of the panels alone, by what its curves are against.
    """
    panels = [curve.against for curve in next(iter(curves.values())) if against in (None, curve.against)]
    figure = Figure(figsize=(4.2 * len(panels) + 1.2 * (len(panels) == 1), 3.8), layout="constrained")
    colours = plt.get_cmap("viridis")([i / max(1, len(curves) - 1) for i in range(len(curves))])
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (label, found), colour in zip(curves.items(), colours, strict=True):
            _draw_locality(axis, next(curve for curve in found if curve.against == panel), label, colour)
    dotted = any(line.get_linestyle() == ":" for axis in figure.axes for line in axis.lines)
    figure.axes[0].set(ylabel="nats per masked token" + " (dotted: irreducible)" * dotted)
    if any(curves):
        figure.axes[-1].legend(fontsize=7)
    return figure


def _draw_locality(axis: Axes, curve: Curve, label: str, colour: Any) -> None:
    place = range(len(curve.points))
    value, low, high = ([getattr(point.loss, of) for point in curve.points] for of in ("value", "low", "high"))
    axis.plot(place, value, color=colour, marker="o", markersize=3, label=label)
    axis.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)
    if all(point.floor is not None for point in curve.points):
        floor = [0.0 if point.floor is None else point.floor.value for point in curve.points]
        axis.plot(place, floor, color=colour, linestyle=":")
    axis.set_xticks(list(place), [point.label for point in curve.points], rotation=60, fontsize=8)
    axis.set(xlabel=curve.against)


def _cell(record: Record | None) -> str:
    return "" if record is None else f"{record.value:.4g} ({record.low:.4g} to {record.high:.4g}), n={record.n}"

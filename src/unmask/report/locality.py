"""Figures of where the loss is: against rate, distance and radius."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.evaluation.curve import Curve
from unmask.report.style import styled


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
    colours = matplotlib.colormaps["viridis"]([i / max(1, len(curves) - 1) for i in range(len(curves))])
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

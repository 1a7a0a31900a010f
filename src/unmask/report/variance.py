"""Figures of a variance in its parts."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.evaluation.decomposition import Decomposition
from unmask.report.style import INK, PALETTE, styled


@styled
def plot_variance(arms: dict[str, dict[str, Decomposition]], path: str | Path, title: str = "") -> None:
    """Draw A, B and C of loss and gradient as stacked bars, the first arm's sum being 1.

    Args:
        arms: by name, what `decompose` returned.
        path: PNG or SVG to write.
        title: above the figure.
    """
    figure = Figure(figsize=(10, 1.3 + 0.42 * len(arms)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, of in zip(axes, ("loss", "gradient"), strict=True):
        _stack(axis, arms, of)
        axis.set(title=f"variance of the {of} at equal forwards")
    axes[0].invert_yaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


@styled
def variance_figure(arms: dict[str, dict[str, Decomposition]], of: str) -> Figure:
    """One of the two panels of `plot_variance`: "loss" or "gradient"."""
    figure = Figure(figsize=(5.4, 1.5 + 0.36 * len(arms)), layout="constrained")
    axis = figure.subplots()
    _stack(axis, arms, of)
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _stack(axis: Axes, arms: dict[str, dict[str, Decomposition]], of: str) -> None:
    names = list(arms)
    unit = arms[names[0]][of].parts
    left = [0.0] * len(names)
    for part, label, colour in (
        ("masks", "A: masks", "arm-0"),
        ("rates", "B: rates", "arm-1"),
        ("rows", "C: rows", "arm-2"),
    ):
        # A part near zero may be estimated below it; a bar cannot be.
        width = [max(0.0, getattr(arms[name][of], part).value / unit) for name in names]
        axis.barh(names, width, left=left, label=label, color=PALETTE[colour][0])
        left = [a + b for a, b in zip(left, width, strict=True)]
    total = [arms[name][of].total for name in names]
    low = [max(0.0, (t.value - t.low) / unit) for t in total]
    high = [max(0.0, (t.high - t.value) / unit) for t in total]
    axis.errorbar([t.value / unit for t in total], names, xerr=[low, high], fmt=".", color=INK, label="total, apart")
    axis.set(xlabel=f"{names[0]} = 1")
    axis.grid(axis="y", visible=False)

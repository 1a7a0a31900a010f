"""Figures, drawn from saved records only."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unmask.evaluation.speedup import Arm
from unmask.evaluation.variance import Decomposition


def plot_curves(arms: list[Arm], path: str | Path, title: str = "") -> None:
    """Draw the solved share of each arm against steps and against seconds of training, with 95% bands.

    Args:
        arms: runs to compare.
        path: PNG or SVG to write.
        title: above the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for arm, colour in zip(arms, _colours(len(arms)), strict=True):
        share = [point["solved"] for point in arm.curve]
        low, high = zip(*(point["interval"] for point in arm.curve), strict=True)
        for axis, of in ((left, "steps"), (right, "seconds")):
            x = [point["step" if of == "steps" else of] for point in arm.curve]
            axis.plot(x, share, color=colour, label=arm.name, marker="o", markersize=3)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="steps", ylabel="unseen puzzles solved", ylim=(0, 1))
    right.set(xlabel="seconds of training")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def plot_variance(arms: dict[str, dict[str, Decomposition]], path: str | Path, title: str = "") -> None:
    """Draw A, B and C of loss and gradient as stacked bars, the first arm's sum being 1.

    Args:
        arms: by name, what `decompose` returned.
        path: PNG or SVG to write.
        title: above the figure.
    """
    figure = Figure(figsize=(10, 0.8 + 0.42 * len(arms)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(arms)
    for axis, of in zip(axes, ("loss", "gradient"), strict=True):
        unit = arms[names[0]][of].parts
        left = [0.0] * len(names)
        for part, label in (("masks", "A: masks"), ("rates", "B: rates"), ("rows", "C: rows")):
            # A part near zero may be estimated below it; a bar cannot be.
            width = [max(0.0, getattr(arms[name][of], part).value / unit) for name in names]
            axis.barh(names, width, left=left, label=label)
            left = [a + b for a, b in zip(left, width, strict=True)]
        total = [arms[name][of].total for name in names]
        low = [max(0.0, (t.value - t.low) / unit) for t in total]
        high = [max(0.0, (t.high - t.value) / unit) for t in total]
        axis.errorbar([t.value / unit for t in total], names, xerr=[low, high], fmt="k.", label="total, apart")
        axis.set(title=of, xlabel=f"variance at equal forwards ({names[0]} = 1)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _colours(count: int) -> list[str]:
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    return [cycle[i % len(cycle)] for i in range(count)]

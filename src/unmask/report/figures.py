"""Figures, drawn from saved records only."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unmask.evaluation.speedup import Arm


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


def _colours(count: int) -> list[str]:
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    return [cycle[i % len(cycle)] for i in range(count)]

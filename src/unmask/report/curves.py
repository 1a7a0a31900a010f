"""Learning curves of a study, drawn from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from unmask.evaluation.estimate import mean_of
from unmask.evaluation.results import Results
from unmask.evaluation.speedup import MEASURES, Measure, Run, measure_of
from unmask.report.figures import colours


def plot_results(results: Results, path: str | Path, title: str = "", steps: int | None = None) -> None:
    """Draw the measure of each arm against steps and against seconds of training, and held-out loss beside a share.

    A line is the mean over seeds. The band around it is the t interval of that mean, or with one seed the
    evaluation's own interval.

    Args:
        results: of a study.
        path: PNG or SVG to write.
        title: above the figure.
        steps: the budget; by default the largest that the control has.
    """
    steps = steps or results.budgets(results.control)[-1]
    curves = {arm: runs for arm in results.arms if (runs := list(results.of_seed(arm, steps).values()))}
    points = [run.curve[-1] for runs in curves.values() for run in runs]
    measures = [results.measure]
    if results.measure.key != "loss" and all("loss" in point for point in points):
        measures += [
            m for m in MEASURES if m.key == "loss" and any(p["loss"] != p[results.measure.key] for p in points)
        ]
    figure = Figure(figsize=(9, 3.4 * len(measures)), layout="constrained")
    axes = figure.subplots(len(measures), 2, sharex="col", sharey="row", squeeze=False)
    for row, measure in zip(axes, measures, strict=True):
        for (arm, runs), colour in zip(curves.items(), colours(len(curves)), strict=True):
            middle, low, high = _band(runs, measure)
            for axis, of in zip(row, ("step", "seconds"), strict=True):
                x = np.mean([[point[of] for point in run.curve[: len(middle)]] for run in runs], axis=0)
                axis.plot(x, middle, color=colour, label=arm, marker="o", markersize=3)
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        row[0].set(ylabel=measure.label)
        if not measure.rises:
            row[0].set_ylim(top=_top(curves, measure))
        if measure.is_share:
            row[0].yaxis.set_major_formatter(PercentFormatter(1))
        for axis in row:
            axis.grid(alpha=0.3)
    axes[-1][0].set(xlabel="steps")
    axes[-1][1].set(xlabel="seconds of training")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(curves)), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _top(curves: dict[str, list[Run]], measure: Measure) -> float | None:
    """Where the axis of a falling measure ends: what a run begins with would press all that follows flat."""
    after = [point[measure.key] for runs in curves.values() for run in runs for point in run.curve[1:]]
    return max(after) + 0.15 * (max(after) - min(after)) if after and max(after) > min(after) else None


def _band(runs: list[Run], measure: Measure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over runs at each evaluation, with the ends of its interval; of what all runs have evaluated."""
    length = min(len(run.curve) for run in runs)
    values = np.array([[point[measure.key] for point in run.curve[:length]] for run in runs])
    if len(runs) > 1:
        found = [mean_of(list(column)) for column in values.T]
        return values.mean(0), np.array([e.low for e in found]), np.array([e.high for e in found])
    own = [
        point["interval"] if _is_of(point, measure) else (value, value)
        for point, value in zip(runs[0].curve, values[0], strict=True)
    ]
    return values[0], *np.array(own, dtype=float).T


def _is_of(point: dict[str, Any], measure: Measure) -> bool:
    """Whether the interval of an evaluation is this measure's."""
    return "interval" in point and measure_of(point) == measure

"""Learning curves of a study, drawn from its records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from unmask.evaluation.estimate import mean_of
from unmask.evaluation.results import Results
from unmask.evaluation.speedup import MEASURES, Cost, Measure, Run, interval_of
from unmask.report.style import FAINT, arm_styles, styled

COSTS: dict[Cost, str] = {"step": "steps", "seconds": "seconds of training", "tokens": "tokens"}
"""What training costs, as axes are labelled."""


@styled
def plot_results(results: Results, path: str | Path, title: str = "", steps: int | None = None) -> None:
    """Draw the measure of each arm against steps and against seconds of training, and held-out loss beside a share.

    A line is the mean over seeds. The band around it is the t interval of that mean, or with one seed the
    evaluation's own interval; of two seeds both are thin lines. Dotted lines are the targets.

    Args:
        results: of a study.
        path: PNG or SVG to write.
        title: above the figure.
        steps: the budget; by default the largest that the control has.
    """
    steps = steps or results.budgets(results.control)[-1]
    measures = measures_of(results, steps)
    figure = Figure(figsize=(9, 3.4 * len(measures)), layout="constrained")
    axes = figure.subplots(len(measures), 2, sharex="col", sharey="row", squeeze=False)
    for row, measure in zip(axes, measures, strict=True):
        for axis, of in zip(row, ("step", "seconds"), strict=True):
            _draw(axis, results, measure, of, steps)
        row[1].set(ylabel="")
    for axis in axes[:-1].flat:
        axis.set(xlabel="")
    _legend(figure, axes[0][0], columns=5)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


@styled
def curve_figure(results: Results, measure: Measure, of: Cost, steps: int) -> Figure:
    """One measure of each arm at a budget against one cost, as in `plot_results`."""
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    axis = figure.subplots()
    _draw(axis, results, measure, of, steps)
    _legend(figure, axis, columns=3)
    return figure


@styled
def ratio_figure(results: Results, steps: int) -> Figure | None:
    """How many times fewer steps each arm took to each target, with intervals; None where no pair reached one."""
    styles = arm_styles(results.arms, results.control)
    speeds = [s for s in results.speeds(steps) if s.arm != results.control]
    found = [(speed, ratio) for speed in speeds if (ratio := speed.ratio()) is not None]
    if not found:
        return None
    targets = list(dict.fromkeys(speed.target for speed, _ in found))
    figure = Figure(figsize=(5.4, 1.3 + 0.24 * len(found) + 0.2 * len(targets)), layout="constrained")
    axis, place, ticks, handles = figure.subplots(), 0.0, [], {}
    axis.set_xscale("log")
    for target in targets:
        rows = [(speed.arm, ratio) for speed, ratio in found if speed.target == target]
        ticks.append(place + (len(rows) - 1) / 2)
        for arm, ratio in rows:
            value, style = ratio.estimate, styles[arm]
            if np.isfinite(value.high):
                axis.plot([value.low, value.high], [place, place], color=style.colour, linewidth=2)
            (handles[arm],) = axis.plot(value.value, place, style.marker, color=style.colour, markersize=7)
            place += 1
        place += 0.8
    axis.axvline(1, color=FAINT, linewidth=1)
    low, high = axis.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    axis.set(xlim=(low, high), ylim=(place - 0.8 + 0.2, -1.0))
    marks = [x for x in (0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 20, 50) if low <= x <= high]
    axis.xaxis.set_major_locator(FixedLocator(marks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}x"))
    axis.set_yticks(ticks, [written_target(target, results) for target in targets])
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="how many times fewer steps", ylabel="target")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)))
    return figure


@styled
def ranking_figure(results: Results, steps: int, final: str | None = None) -> Figure | None:
    """Where each arm ends, less the control, the best first, with intervals over paired seeds.

    None for fewer than two arms with two seeds or more, and where a final evaluation has no measure.
    """
    measure = results.measure_in(final)
    found = [(arm, paired.estimate) for arm, paired in results.ranked(steps, final) if paired.pairs > 1]
    if measure is None or len(found) < 2:
        return None
    styles, scale = arm_styles(results.arms, results.control), 100 if measure.is_share else 1
    figure = Figure(figsize=(5.4, 1.1 + 0.3 * len(found)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=FAINT, linewidth=1)
    for place, (arm, value) in enumerate(found):
        low, middle, high = (scale * x for x in (value.low, value.value, value.high))
        axis.plot([low, high], [place, place], color=styles[arm].colour, linewidth=2)
        axis.plot(middle, place, styles[arm].marker, color=styles[arm].colour, markersize=7)
    axis.set_yticks(range(len(found)), [arm for arm, _ in found])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    unit = ", points" if measure.is_share else ""
    axis.set(xlabel=f"{measure.label}{unit}, less {results.control}'s")
    return figure


def measures_of(results: Results, steps: int) -> list[Measure]:
    """What is drawn: the measure, and held-out loss where that is another number."""
    points = [run.curve[-1] for run in results.runs if run.steps == steps]
    found = [results.measure]
    if results.measure.key != "loss" and all("loss" in point for point in points):
        found += [m for m in MEASURES if m.key == "loss" and any(p["loss"] != p[results.measure.key] for p in points)]
    return found


def costs_of(results: Results, steps: int) -> list[Cost]:
    """What the runs of a budget have counted."""
    runs = [run for run in results.runs if run.steps == steps]
    return [of for of in COSTS if all(of in point for run in runs for point in run.curve)]


def written(value: float, measure: Measure) -> str:
    """A level of a measure, as a target is named."""
    return format(value, ".0%" if measure.is_share else measure.form)


def written_target(target: float | None, results: Results) -> str:
    """A target's name."""
    return "weaker end" if target is None else written(target, results.measure)


def _draw(axis: Axes, results: Results, measure: Measure, of: Cost, steps: int) -> None:
    curves = {arm: runs for arm in results.arms if (runs := list(results.of_seed(arm, steps).values()))}
    styles = arm_styles(results.arms, results.control)
    for arm, runs in curves.items():
        middle, low, high = _band(runs, measure)
        style = styles[arm]
        x = np.mean([[point[of] for point in run.curve[: len(middle)]] for run in runs], axis=0)
        if len(runs) == 2:  # the interval of two is so wide that it would hide all else
            for run in runs:
                own = [point[measure.key] for point in run.curve[: len(middle)]]
                axis.plot(x, own, style.dash, color=style.colour, alpha=0.35, linewidth=1)
        else:
            axis.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
        axis.plot(x, middle, style.dash, color=style.colour, label=arm, marker=style.marker, markersize=3.5)
    if measure == results.measure:
        for target in results.targets(steps):
            axis.axhline(target, color=FAINT, linewidth=1, linestyle=":")
            axis.annotate(
                written(target, measure),
                (0, target),
                xytext=(3, 2),
                textcoords="offset points",
                xycoords=("axes fraction", "data"),
                color=FAINT,
                fontsize=9,
            )
    axis.set(xlabel=COSTS[of], ylabel=measure.label, ylim=_limits(axis, curves, measure))
    axis.margins(x=0.02)
    if measure.is_share:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if of == "tokens":
        axis.xaxis.set_major_formatter(_short)


def _short(value: float, place: float) -> str:
    """A large count in few signs."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _legend(figure: Figure, axis: Axes, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def _limits(axis: Axes, curves: dict[str, list[Run]], measure: Measure) -> tuple[float, float]:
    """What of the vertical axis is shown: the lines, and of their bands what comes near them.

    Where less is better, what a run begins with is left out, as it would press all that follows flat.
    """
    first = 0 if measure.rises else 1
    values = [value for runs in curves.values() for value in _band(runs, measure)[0][first:]]
    low, high = axis.get_ylim()
    room = 0.3 * (max(values) - min(values)) if values else 0.0
    if room:
        low, high = max(low, min(values) - room), min(high, max(values) + room)
    return (max(low, -0.01), min(high, 1.01)) if measure.is_share else (low, high)


def _band(runs: list[Run], measure: Measure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over runs at each evaluation, with the ends of its interval; of what all runs have evaluated."""
    length = min(len(run.curve) for run in runs)
    values = np.array([[point[measure.key] for point in run.curve[:length]] for run in runs])
    if len(runs) > 1:
        found = [mean_of(list(column)) for column in values.T]
        low, high = (np.array([getattr(e, end) for e in found]) for end in ("low", "high"))
        # A t interval of two runs knows no bounds, but a share does.
        return values.mean(0), *((low.clip(0), high.clip(None, 1)) if measure.is_share else (low, high))
    own = [
        interval_of(point, measure) or (value, value) for point, value in zip(runs[0].curve, values[0], strict=True)
    ]
    return values[0], *np.array(own, dtype=float).T

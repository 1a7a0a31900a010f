"""Figures, drawn from saved records only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from unmask.evaluation.locality import Curve
from unmask.evaluation.variance import Decomposition
from unmask.processes.ppots import EPRFit
from unmask.report.style import INK, PALETTE, styled
from unmask.store.metrics import read_metrics


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


def plot_times(
    fits: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], path: str | Path, title: str = ""
) -> None:
    """Draw what a time distribution learnt, and what training showed at each rate.

    The density after each fit; the measurements behind the last fit, with the fitted curve and its KL; loss of a
    masked token and gradient of a row by masked share, over training.

    Args:
        fits: lines of kind "time" of a run's metrics, at least one.
        steps: lines of kind "train".
        path: PNG or SVG to write.
        title: above the figure.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    (density, fit), (loss, gradient) = figure.subplots(2, 2)
    shades = ScalarMappable(Normalize(0, max(1, *(line["step"] for line in (*fits, *steps)))), "viridis")
    for line in fits:
        mass = line["density"]
        density.stairs(mass, np.linspace(0, 1, len(mass) + 1), color=shades.to_rgba(line["step"]), baseline=None)
    density.set(title="density after each fit", ylabel="p(t)", ylim=(0, None))
    _plot_fit(fit, fits[-1])
    for axis, of, label in (
        (loss, "loss", "nats a masked token"),
        (gradient, "gradient", "length at the hidden states"),
    ):
        for line in steps:
            share = (np.arange(len(line["by_rate"][of])) + 0.5) / len(line["by_rate"][of])
            values = np.array([np.nan if x is None else x for x in line["by_rate"][of]])
            axis.plot(share, values, ".", color=shades.to_rgba(line["step"]), markersize=4, alpha=0.6)
        axis.set(title=f"{of} by masked share", xlabel="masked share", ylabel=label, yscale="log")
    for axis in (density, fit):
        axis.set(xlabel="t")
    for axis in (density, fit, loss, gradient):
        axis.set(xlim=(0, 1))
        axis.grid(alpha=0.3)
    figure.colorbar(shades, ax=[density, fit, loss, gradient], label="step", shrink=0.6)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_order(runs: dict[str, list[dict[str, Any]]], path: str | Path, title: str = "") -> None:
    """Draw how far the chain of each checkpoint agrees with the final model's own decoding order, with 95% bands.

    Args:
        runs: by name, what `unmask.evaluation.order.order_over_training` returned.
        path: PNG or SVG to write.
        title: above the figure.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (name, records), colour in zip(runs.items(), colours(len(runs)), strict=True):
        steps, tau, low, high = ([r[key] for r in records] for key in ("step", "tau", "low", "high"))
        axis.plot(steps, tau, color=colour, label=name, marker="o", markersize=3)
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="steps", ylabel="Kendall's τ-b to the final decoding order", ylim=(None, 1))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


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


def _plot_fit(axis: Axes, line: dict[str, Any]) -> None:
    """Measured points and fitted curve of one fit, both scaled to mean 1 over the measured rates."""
    if "fit" not in line:
        axis.set(title="no fit")
        return
    t, mean, variance = (np.array(line[name]) for name in ("t", "mean", "variance"))
    of, fit = line["moment"], EPRFit(line["fit"], line["kl"])
    stratified = line["optimum"] == "stratified"
    measured = np.sqrt(variance + (0 if stratified else mean**2))
    smooth = np.linspace(1e-3, 1, 400)
    axis.plot(t, measured / measured.mean(), "k.", label=f"measured ({of})")
    axis.plot(smooth, fit.root(smooth, line["optimum"]) / fit.root(t, line["optimum"]).mean(), label="fitted")
    root = "√v" if stratified else "√(g² + v)"
    axis.set(
        title=f"last fit, step {line['step']}: KL {line['kl']:.4f} nats", ylabel=f"{root}, mean 1", ylim=(0, None)
    )
    axis.legend()


def colours(count: int) -> list[str]:
    """One for each line."""
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return [cycle[i % len(cycle)] for i in range(count)]


def draw_rates(folder: Path) -> None:
    """Draw rates.png from the metrics of a run whose time distribution learnt. A failure never costs the run."""
    try:
        fits = read_metrics(folder, "time")
        if fits:
            plot_times(fits, read_metrics(folder, "train"), folder / "rates.png", title=folder.name)
    except Exception as error:
        warnings.warn(f"could not draw {folder / 'rates.png'}: {error}", stacklevel=2)

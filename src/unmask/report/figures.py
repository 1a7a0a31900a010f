"""Figures of mask rates and of orders, drawn from saved records only."""

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

from unmask.processes.ppots import EPRFit
from unmask.store.metrics import read_metrics


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

"""What training steps showed, arm by arm: loss and gradient by mask rate, gradient norms, rates that were learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unmask.evaluation.results import Results
from unmask.evaluation.speedup import Run
from unmask.report.style import PALETTE, arm_styles, styled

BY_RATE = {"loss": "nats a masked token", "gradient": "gradient of a row"}
"""What is known by mask rate, as axes are labelled."""


@styled
def rate_figure(results: Results, of: str, steps: int) -> Figure | None:
    """Loss or gradient against the masked share of a row, mean and range over seeds; None without records."""
    figure, axis = _panel()
    for arm, logs in _logs(results, steps, "by_rate").items():
        values = np.array([[np.nan if x is None else x for x in log[of]] for log in logs], dtype=float)
        share = (np.arange(values.shape[1]) + 0.5) / values.shape[1]
        known = ~np.isnan(values).all(0)
        values, share, style = values[:, known], share[known], arm_styles(results.arms, results.control)[arm]
        axis.fill_between(share, np.nanmin(values, 0), np.nanmax(values, 0), color=style.colour, alpha=0.15)
        axis.plot(share, np.nanmean(values, 0), style.dash, color=style.colour, marker=style.marker, label=arm)
    axis.set(xlabel="masked share of the row", ylabel=BY_RATE[of], xlim=(0, 1), ylim=(0, None))
    return _finished(figure)


@styled
def norm_figure(results: Results, steps: int) -> Figure | None:
    """Norm of a step's gradient over training, median and the middle 80%, mean over seeds; None without records."""
    figure, axis = _panel()
    for arm, logs in _logs(results, steps, "gradient_norm").items():
        at = [part["step"] for part in logs[0]]
        low, middle, high = np.mean([[part["quantiles"] for part in log] for log in logs], axis=0).T
        style = arm_styles(results.arms, results.control)[arm]
        axis.fill_between(at, low, high, color=style.colour, alpha=0.15)
        axis.plot(at, middle, style.dash, color=style.colour, marker=style.marker, markersize=3.5, label=arm)
    axis.set(xlabel="steps", ylabel="norm of a step's gradient", ylim=(0, None))
    return _finished(figure)


@styled
def density_figure(run: Run) -> Figure | None:
    """The density of mask rates after each fit of a run's time distribution, the first palest; None without fits."""
    fits = run.record.get("log", {}).get("fits", [])
    figure, axis = _panel()
    for number, fit in enumerate(fits, 1):
        mass, last = fit["density"], number == len(fits)
        axis.stairs(
            mass,
            np.linspace(0, 1, len(mass) + 1),
            color=PALETTE["arm-0"][0],
            alpha=0.25 + 0.75 * number / len(fits),
            linewidth=2 if last else 1,
            baseline=None,
            label=f"after step {fit['step']}" if last or number == 1 else None,
        )
    axis.set(xlabel="mask rate t", ylabel="density", xlim=(0, 1), ylim=(0, None))
    return _finished(figure)


def _logs(results: Results, steps: int, of: str) -> dict[str, list[Any]]:
    """What the logs of a budget's runs tell, by arm; only of arms of which something is known."""
    logs: dict[str, list[Any]] = {}
    for run in results.runs:
        log: Mapping[str, Any] = run.record.get("log") or {}
        if run.steps == steps and of in log:
            logs.setdefault(run.arm, []).append(log[of])
    return {arm: logs[arm] for arm in results.arms if arm in logs}


def _panel() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    return figure, figure.subplots()


def _finished(figure: Figure) -> Figure | None:
    """With a legend below it; None where nothing was drawn."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not handles:
        return None
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure

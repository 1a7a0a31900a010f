"""What the experiments share: records as JSON lines, paired differences over seeds, tables, learning curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

Runs = dict[str, dict[int, dict[str, Any]]]
"""Records by arm and seed."""


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a file, one line each."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def loop(steps: int, seed: int, warmup: float = 0.04) -> dict[str, Any]:
    """Settings of `TrainingConfig` that runs of one budget share: ten evaluations, one thread."""
    settings = {"steps": steps, "warmup_steps": round(warmup * steps), "evaluate_every": steps // 10}
    return {**settings, "seed": seed, "threads": 1, "tracker": "none"}


def read(path: Path) -> list[dict[str, Any]]:
    """Read what `append` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def paired(differences: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean of paired differences with its 95% t-interval; without an interval for one pair."""
    if not differences:
        return ""
    middle = scale * mean(differences)
    if len(differences) < 2:
        return f"{middle:+.{digits}f}"
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return f"{middle:+.{digits}f} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def grouped(records: Iterable[dict[str, Any]]) -> Runs:
    """Runs by arm and seed; a later record of the same run replaces an earlier one."""
    runs: Runs = {}
    for record in records:
        runs.setdefault(record["arm"], {})[record["seed"]] = record
    return runs


def against(arm: Mapping[int, float], control: Mapping[int, float], scale: float = 100, digits: int = 1) -> str:
    """Paired difference, arm less control, over the seeds that both have."""
    return paired([arm[seed] - control[seed] for seed in sorted(arm.keys() & control.keys())], scale, digits)


def mean_curve(of_seed: Mapping[int, dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean seconds and mean value along training."""
    curves = [run["curve"] for run in of_seed.values()]
    columns = ([[point.get(name, np.nan) for point in curve] for curve in curves] for name in ("seconds", key))
    steps = np.array([point["step"] for point in curves[0]])
    return steps, *(np.mean(column, axis=0) for column in columns)


def plot_curves(runs: Runs, key: str, label: str, path: Path, top: float | None = None, scale: float = 1) -> None:
    """Draw the mean curve of every arm over steps and over seconds; single seeds are faint.

    The machine may have been shared with other runs: seconds compare roughly.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (arm, of_seed) in enumerate(runs.items()):
        steps, seconds, value = mean_curve(of_seed, key)
        for panel, x in zip(panels, (steps, seconds), strict=True):
            panel.plot(x, scale * value, color=f"C{number}", label=f"{arm} ({len(of_seed)} seeds)")
        for run in of_seed.values() if len(of_seed) > 1 else ():
            panels[0].plot(
                steps, [scale * point[key] for point in run["curve"]], color=f"C{number}", alpha=0.25, lw=0.8
            )
    panels[0].set(xlabel="steps", ylabel=label)
    panels[1].set(xlabel="seconds of training, one core of a shared machine")
    if top is not None:
        panels[0].set_ylim(top=top)
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[1].legend(frameon=False)
    figure.savefig(path, dpi=150)

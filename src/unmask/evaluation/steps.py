"""What a run's log tells of its training steps, in the few numbers that a report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmask.store.metrics import read_metrics

PARTS = 10
"""Parts of training, of equally many logged steps, that gradient norms are summed up in."""
FITS = 8
"""Most fits of a time distribution that are kept."""


def steps_of(folder: Path) -> dict[str, Any]:
    """Sum up the training steps that a run has logged.

    Returns:
        "by_rate": by bin of the masked share, ascending, over the second half of the logged steps: "loss" (nats a
        masked token) and "gradient" (root of the mean squared length of a row's gradient at the hidden states); None
        for bins without rows. "gradient_norm": by part of training, "step" in the middle and the 10%, 50% and 90%
        quantiles of the norm of a step's gradient before clipping. "fits": "step" and "density" (in equal bins of t)
        of fits of a time distribution, the first and the last among them. What was not logged is not there.
    """
    every, found = read_metrics(folder), {}
    lines, fits = ([line for line in every if line["kind"] == kind] for kind in ("train", "time"))
    with_rates = [line["by_rate"] for line in lines[len(lines) // 2 :] if "by_rate" in line]
    if with_rates:
        found["by_rate"] = {"loss": _mean(with_rates, "loss", 1), "gradient": _mean(with_rates, "gradient", 2)}
    norms = [(line["step"], line["grad_norm"]) for line in lines if line.get("grad_norm") is not None]
    if len(norms) >= 2 * PARTS:
        found["gradient_norm"] = [
            {"step": float(np.median(part[:, 0])), "quantiles": np.quantile(part[:, 1], (0.1, 0.5, 0.9)).tolist()}
            for part in np.array_split(np.array(norms), PARTS)
        ]
    if fits:
        kept = np.unique(np.linspace(0, len(fits) - 1, min(FITS, len(fits))).astype(int))
        found["fits"] = [{"step": fits[i]["step"], "density": fits[i]["density"]} for i in kept]
    return found


def _mean(bins: Sequence[Mapping[str, Any]], of: str, power: int) -> list[float | None]:
    """Power mean of each bin over steps, weighted by rows."""
    rows = np.array([step["rows"] for step in bins], dtype=float)
    values = np.array([[np.nan if value is None else value for value in step[of]] for step in bins])
    rows = np.where(np.isnan(values), 0.0, rows)
    total = (rows * np.nan_to_num(values) ** power).sum(0)
    return [
        float(value / count) ** (1 / power) if count else None
        for value, count in zip(total, rows.sum(0), strict=True)
    ]

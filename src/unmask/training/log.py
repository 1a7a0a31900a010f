"""Where the figures of a run go: its own log, and the trackers that the user asked for."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from unmask.store.metrics import MetricsLog


class RunLog:
    """The log of a run on this rank.

    Args:
        metrics: the run's own, on the rank that writes it.
        accelerator: knows the trackers.
        tracked: whether there are any.
    """

    def __init__(self, metrics: MetricsLog | None, accelerator: Accelerator, tracked: bool) -> None:
        self.metrics, self.accelerator, self.tracked = metrics, accelerator, tracked

    def write(self, kind: str, place: dict[str, Any], values: dict[str, Any]) -> None:
        """Add figures of a kind; `place` tells the step and how far the run has come."""
        if self.metrics is not None:
            self.metrics.write(kind, **place, **values)
        if self.tracked:
            numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            self.accelerator.log(numbers, step=place["step"])

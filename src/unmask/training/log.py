"""Where the figures of a run go: its own log, and the tracker that the user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from unmask.store.metrics import MetricsLog

PROJECT = "unmask"
_NAMED = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


class RunLog:
    """The log of a run on this rank.

    Args:
        metrics: the run's own, on the rank that writes it.
        accelerator: of the run; it knows the tracker.
        tracker: its name there, or "none".
        name: of the run.
        config: of the run, as JSON values.
    """

    def __init__(
        self, metrics: MetricsLog | None, accelerator: Accelerator, tracker: str, name: str, config: Mapping[str, Any]
    ) -> None:
        self._metrics, self._accelerator, self._tracks = metrics, accelerator, tracker != "none"
        if self._tracks:
            accelerator.init_trackers(**tracker_settings(tracker, name, config))

    def write(self, kind: str, place: dict[str, Any], values: dict[str, Any]) -> None:
        """Add figures of a kind; `place` tells the step and how far the run has come."""
        if self._metrics is not None:
            self._metrics.write(kind, **place, **values)
        if self._tracks:
            numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            self._accelerator.log(numbers, step=place["step"])

    def close(self) -> None:
        """Let the tracker send what it holds."""
        for tracker in self._accelerator.trackers:  # not end_training: a later run needs the process group
            tracker.finish()


def tracker_settings(tracker: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of accelerate's `init_trackers`.

    Args:
        tracker: by accelerate's name for it. TensorBoard's events lie in the run's folder, beside its config.json.
        name: of the run.
        config: of the run, as JSON values.
    """
    if tracker == "tensorboard":
        return {"project_name": "tracker"}
    named = {tracker: {_NAMED[tracker]: name}} if tracker in _NAMED else {}
    return {"project_name": PROJECT, "config": flattened({"name": name, **config}), "init_kwargs": named}


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON values as one level of plain ones, "masking.time.mean": 0.5."""
    if isinstance(config, Mapping):
        items = [flattened(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items()]
        return {key: value for item in items for key, value in item.items()}
    return {prefix: config if isinstance(config, (bool, int, float, str)) else str(config)}

"""What other programs that keep metrics are told of a run: its name and its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROJECT = "unmask"
_NAMED = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


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

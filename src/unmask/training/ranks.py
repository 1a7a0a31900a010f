"""The ranks of a run and where they compute, by Hugging Face accelerate; this is the one file that imports it."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin


def accelerator_of(tracker: str | None, out: Path) -> Accelerator:
    """What connects the ranks of a run.

    Args:
        tracker: where metrics go besides, by accelerate's name; None for nowhere.
        out: the run's folder.

    Raises:
        ValueError: for a tracker that accelerate does not know, or whose package is not installed.
    """
    # One process may train several runs after one another; accelerate keeps the first one's settings.
    AcceleratorState._reset_state()
    try:
        # Whatever `accelerate config` or the environment says of these, the run's own settings decide.
        accelerator = Accelerator(
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=tracker,
            project_dir=str(out),
        )
    except ValueError as error:
        raise ValueError(f"tracker '{tracker}': {error}") from None
    if tracker is not None and not accelerator.log_with:
        raise ValueError(f"tracker '{tracker}' is not installed; install its package, or use --tracker none")
    return accelerator

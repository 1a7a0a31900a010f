"""The ranks of a run and where they compute, by Hugging Face accelerate; this is the one file that imports it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from unmask.training.config import TrainingConfig
from unmask.training.launched import check_launch, warn_of_unused


def accelerator_of(config: TrainingConfig, out: Path) -> Accelerator:
    """What connects the ranks of a run, with its threads, its time-out and its tracker.

    Args:
        config: of the loop.
        out: the run's folder.

    Raises:
        ValueError: for a tracker that accelerate does not know, or whose package is not installed, and for what
            `check_launch` refuses.
    """
    tracker = None if config.tracker == "none" else config.tracker
    check_launch()
    warn_of_unused()
    # One process may train several runs after one another; accelerate keeps the first one's settings.
    AcceleratorState._reset_state()
    try:
        # Whatever `accelerate config` or the environment says of these, the run's own settings decide. Without a
        # device, accelerate connects ranks only where it is told that the CPU is meant; torchrun does not tell.
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.rank_timeout_minutes))],
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=tracker,
            project_dir=str(out),
        )
    except ValueError as error:
        raise ValueError(f"tracker '{tracker}': {error}") from None
    if config.threads is not None:  # after accelerate, which sets them for ranks on a CPU
        torch.set_num_threads(config.threads)
    if tracker is not None and not accelerator.log_with:
        raise ValueError(f"tracker '{tracker}' is not installed; install its package, or use --tracker none")
    return accelerator

"""The ranks of a run and where they compute, by Hugging Face accelerate."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from unmask.training.config import TrainingConfig
from unmask.training.launched import check_launch, warn_of_unused


def connect(config: TrainingConfig) -> torch.device:
    """Connect the ranks of a run, where they are not yet; returns the device of this one.

    Ranks on GPUs exchange by NCCL what lies there (gradients, sharded weights), and by gloo what lies on the host
    (counts, sums, the wish to stop): NCCL would queue that behind the device's work, and the host would wait for it.

    Args:
        config: of the loop.

    Raises:
        ValueError: for what `check_launch` refuses.
    """
    check_launch()
    minutes = timedelta(minutes=config.rank_timeout_minutes)
    both = {"backend": "cuda:nccl,cpu:gloo"} if torch.cuda.is_available() and "LOCAL_RANK" in os.environ else {}
    # Without a device, accelerate connects ranks only where it is told that the CPU is meant; torchrun does not tell.
    device = PartialState(cpu=not torch.accelerator.is_available(), timeout=minutes, **both).device
    assert device is not None  # once it is connected
    return device


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
    connect(config)
    warn_of_unused()
    # One process may train several runs after one another; accelerate keeps the first one's settings.
    AcceleratorState._reset_state()
    try:
        # Whatever `accelerate config` or the environment says of these, the run's own settings decide.
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            # A forward may leave weights out: experts without a token, parts of a model of the user's own.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
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

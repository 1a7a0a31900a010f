"""What the loop says when numbers are not what they should be, or cannot be had."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from unmask.batch import MaskedBatch
from unmask.config import require
from unmask.distributed import is_sharded
from unmask.fitted_times import measured_for
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.processes import ForwardProcess, Masking
from unmask.processes.progressive import ProgressiveProcess
from unmask.processes.refit import fitted_time_of
from unmask.store.checkpoint import newest
from unmask.training.config import TrainingConfig
from unmask.training.platform import autocast

CHAINS = 2
"""Times that a chain should move from end to end in a run, at least."""


def check_measured(masking: Masking, process: ForwardProcess, held_out: Dataset | None, sharded: bool) -> None:
    """Refuse rates that learn from what cannot be measured here.

    Args:
        masking: of the run.
        process: the running one.
        held_out: rows to measure it on.
        sharded: whether a rank has only a part of each weight.

    Raises:
        ValueError: where rows are lacking, or gradients of single rows are wanted of a sharded model.
    """
    wanted = measured_for(fitted_time_of(process))
    if wanted is None:
        return
    require(held_out is not None, f"{masking} measures the model during training: give the trainer held_out rows")
    require(
        not (sharded and wanted.moment == "gradient"),
        f"{masking} measures gradients row by row, and under FSDP a rank has only a part of each: use DDP, or "
        "PPOTS(moment='loss')",
    )


def too_short_for_pool(process: ForwardProcess, steps: int) -> str | None:
    """What to tell of a run in which PUMA's chains do not move from end to end several times; None for any other.

    Until chains have moved on, rows are masked almost as at random: what PUMA gains it gains late (docs/puma.md).
    """
    if not isinstance(process, ProgressiveProcess):
        return None
    stages, turns = process.chain.stages, process.turns
    if steps >= CHAINS * stages * turns or turns == 1:
        return None
    smaller = process.pool // turns * max(1, steps // (2 * CHAINS * stages))
    return (
        f"a chain of PUMA moves on every {turns} steps, so {stages} stages take {stages * turns} steps, and the run "
        f"has {steps}: give a smaller pool (pool={smaller}), fewer stages or more steps"
    )


def check_results(results: Any, place: Collection[str]) -> None:
    """Refuse what an evaluation of the user's own gives and the log cannot hold.

    Args:
        results: what it gave.
        place: names that the log's lines have already.

    Raises:
        TypeError: for anything but a dict, or a figure that JSON does not know, such as a tensor.
        ValueError: for a figure under a name that is taken.
    """
    if not isinstance(results, dict):
        raise TypeError(f'evaluate must return a dict of figures, as {{"loss": 1.5}}, got {results!r}')
    taken = sorted({"kind", *place} & set(results))
    require(not taken, f"evaluate gives {', '.join(taken)}, as the run's own figures are called: use other names")
    for name, value in results.items():
        try:
            json.dumps({name: value})
        except TypeError as error:
            raise TypeError(f"evaluate's figure {name!r} cannot be logged, give float(...) of it: {error}") from None


def check_unused(trained: bool, resume: bool, checkpoints: Path) -> None:
    """Refuse to start with a model, a process and a stream that have left their start, unless a checkpoint is there.

    Args:
        trained: whether the trainer has begun a step before.
        resume: whether it is to go on.
        checkpoints: folder of the run's.

    Raises:
        ValueError: before anything in the folder has changed.
    """
    require(
        not trained or (resume and newest(checkpoints) is not None),
        "this trainer has trained already, so its model is not as it was at the start: make a new one, with a new "
        "model; train(resume=True) goes on once there is a checkpoint",
    )


def never_warm(config: TrainingConfig) -> str | None:
    """What to tell of a run that ends before its learning rate is up; None for any other."""
    steps, last = config.steps - config.anneal_from, config.learning_rate_at(config.steps - 1)
    return ends_in_warmup(steps, config.warmup_steps, last, config.learning_rate)


def ends_in_warmup(steps: int, warmup_steps: int, last: float, full: float) -> str | None:
    """What to tell of a learning rate that rises for longer than a run; None for any other.

    Args:
        steps: of the run.
        warmup_steps: for which it rises.
        last: the rate of the last step.
        full: the rate once it is up.
    """
    if steps >= warmup_steps:
        return None
    return (
        f"the learning rate rises for {warmup_steps} steps, and the run has {steps}: it ends at {last:.2g} of "
        f"{full:g}: lower warmup_steps"
    )


def resumed(done: int, steps: int) -> str:
    """What to tell of a run that goes on with what its folder holds."""
    if done == 0:
        return "there is no checkpoint to go on from: starts afresh"
    return (
        f"goes on from step {done} of {steps}" if done < steps else f"step {done} of {steps} is done: nothing is left"
    )


def notes(
    process: ForwardProcess, config: TrainingConfig, begins_at: int | None, compiled: bool, given: Collection[str]
) -> list[str]:
    """What to tell before the first step.

    Args:
        process: the running one.
        config: of the loop.
        begins_at: steps done, of a run that is resumed; else None.
        compiled: whether layers are.
        given: names of what was handed to the trainer instead of a setting.
    """
    cold = None if "learning_rate" in given else never_warm(config)
    went_on = None if begins_at is None else resumed(begins_at, config.steps)
    waits = "layers are compiled, so the first steps take up to a minute" if compiled else None
    return [*filter(None, (went_on, too_short_for_pool(process, config.steps), cold, waits))]


def check_start(nll: float, choices: int) -> None:
    """Warn where the first step's loss is far from log V nats a masked token, V the tokens it may be."""
    expected = math.log(choices)
    if nll > 1.25 * expected + 0.1:
        warnings.warn(
            f"the first step's loss is {nll:.2f} nats a masked token, well above log V = {expected:.2f}: "
            "the initial weights are too large, or the labels do not line up with the predictions",
            stacklevel=3,
        )
    elif nll < 0.75 * expected - 0.1:
        warnings.warn(
            f"the first step's loss is {nll:.2f} nats a masked token, well below log V = {expected:.2f}: fine "
            "for a pretrained model; with random weights it means that the answer leaks into the input",
            stacklevel=3,
        )


def check_finite(
    model: MaskedDiffusionLM,
    dtype: torch.dtype | None,
    step: int,
    checkpoints: Path,
    figures: Mapping[str, Any],
    batch: MaskedBatch,
    nll: Tensor,
) -> None:
    """End a run whose loss or gradient is not finite, with its first source where that is found.

    Args:
        model: unwrapped; nothing is looked for in one that is spread over ranks.
        dtype: of the run's products under autocast; None for none.
        step: steps done.
        checkpoints: folder of the run's.
        figures: of the step: its "loss", and the "grad_norm", None where it was skipped for an overflow.
        batch: this rank's rows.
        nll: [B, L] of the step.

    Raises:
        FloatingPointError: naming step, rows and the last good checkpoint.
    """
    loss, norm = figures["loss"], math.nan if figures["grad_norm"] is None else figures["grad_norm"]
    if math.isfinite(loss) and (figures["grad_norm"] is None or math.isfinite(norm)):
        return
    last, source = newest(checkpoints), None if is_sharded(model) else first_not_finite(model, dtype, batch, nll)
    bad = ~nll.isfinite().all(1)
    rows = (batch.clean.row[bad] if bad.any() else batch.clean.row).tolist()
    raise FloatingPointError(
        f"step {step}: the loss is {loss} and the gradient norm {norm}. "
        f"Rows of the data set {'with a bad loss' if bad.any() else 'in the batch'}: {rows[:16]}. "
        f"The last good checkpoint is {last or 'none: none was written yet'}. "
        + (
            f"What is first not finite is {source}: look at these rows and at the model"
            if source
            else "Lower learning_rate, raise warmup_steps, or try --precision fp32"
        )
    )


@torch.no_grad()
def first_not_finite(
    model: MaskedDiffusionLM, dtype: torch.dtype | None, batch: MaskedBatch, nll: Tensor
) -> str | None:
    """Where a forward of the rows with a bad loss first leaves the finite numbers; None where it does not.

    A weight that is not finite is named before the module that reads it.

    Args:
        model: unwrapped, its weights whole.
        dtype: as for `check_finite`: what overflows in it alone is found.
        batch: this rank's rows.
        nll: [B, L] of them.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weight {name}"
    bad = ~nll.isfinite().all(1)
    found: list[str] = []

    def look(name: str, output: object) -> None:
        values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
        tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        if bad.any():
            with autocast(nll.device, dtype):
                model(batch[bad.nonzero()[:, 0]])
    finally:
        for hook in hooks:
            hook.remove()
    return f"the output of {found[0]}" if found else None

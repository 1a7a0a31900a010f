"""What a checkpoint holds of a run, and how it is put back: bitwise; on another number of ranks, dealt anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from unmask import __version__
from unmask.data.tokenizers import TextTokenizer
from unmask.distributed import placed, raise_together, whole
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.pretrained import model_card
from unmask.processes import ForwardProcess, dealt_anew
from unmask.store import checkpoint
from unmask.training.callbacks import Callback
from unmask.training.ema import WeightAverage
from unmask.training.loss_scale import LossScale

_SWITCHES = ("fused", "foreach", "capturable")  # of optimisers: the machine's, not the run's


@dataclass(frozen=True)
class Parts:
    """The parts of a running training that change from step to step: what is saved, and what a resume fills.

    Attributes:
        model: unwrapped; its parameters may be sharded.
        optimizer: over the model's parameters.
        process: this rank's.
        average: moving average of the weights, if there is one.
        loss_scale: of fp16, if that is what products are in.
        callbacks: what the user added, in order.
        rank: of this process.
        ranks: how many there are.
    """

    model: MaskedDiffusionLM
    optimizer: Optimizer
    process: ForwardProcess
    average: WeightAverage | None = None
    loss_scale: LossScale | None = None
    callbacks: Sequence[Callback] = ()
    rank: int = 0
    ranks: int = 1


@dataclass
class Counters:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        seconds: spent training, evaluations and checkpoints excluded.
        tokens: real tokens seen, over all ranks.
        losses: of the steps since the last line of the log, which tells their mean.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


def save_training(
    root: Path,
    parts: Parts,
    counters: Counters,
    *,
    keep: int,
    spared: Collection[int] = (),
    tokenizer: TextTokenizer | None = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of a step; every rank must call it.

    Args:
        root: folder of the run's checkpoints.
        parts: what is saved.
        counters: of the step.
        keep: whole checkpoints to keep.
        spared: steps whose checkpoints stay besides.
        tokenizer: what made the rows' tokens, if they are text; saved beside the weights.
        card: what the model card tells, by heading.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: where the disk is full or not writable; earlier checkpoints are left as they were.
    """
    model, names, step = parts.model, _names(parts.model), counters.step
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    moments = {names[p]: {k: _whole(v) for k, v in state.items()} for p, state in parts.optimizer.state.items()}
    groups = {
        str(i): {k: v for k, v in group.items() if k not in ("params", *_SWITCHES)}
        for i, group in enumerate(parts.optimizer.param_groups)
    }
    average = None
    if parts.average is not None:
        average = {name: whole(tensor) for name, tensor in parts.average.weights(model).items()}
    rank_state, rank_file = {"process": parts.process.state_dict()}, f"rank-{parts.rank}"

    def fill(folder: Path) -> None:
        for name, tensors in (("model", weights), ("ema", average)):
            if tensors is not None:
                _write_model(folder / name, model, tensors, tokenizer, card or {})
        progress: dict[str, Any] = vars(counters) | {"ranks": parts.ranks}
        if parts.loss_scale is not None:
            progress["loss_scale"] = parts.loss_scale.state_dict()
        progress["callbacks"] = {str(i): callback.state_dict() for i, callback in enumerate(parts.callbacks)}
        checkpoint.save_state(folder / "optimizer", {"moments": moments, "groups": groups, **progress})
        checkpoint.save_state(folder / rank_file, rank_state)

    problem = None
    try:
        if parts.rank != 0:
            checkpoint.save_state(checkpoint.begin(root, step) / rank_file, rank_state)
    except checkpoint.CheckpointError as error:
        problem = error
    except (OSError, SafetensorError) as error:
        problem = checkpoint.CheckpointError(f"could not save step {step}: {error}")
    raise_together(parts.ranks, problem, checkpoint.CheckpointError)
    try:
        if parts.rank == 0:
            checkpoint.write(root, step, __version__, fill, keep, spared)
    except checkpoint.CheckpointError as error:
        problem = error
    raise_together(parts.ranks, problem, checkpoint.CheckpointError)
    return checkpoint.folder_of(root, step)


def load_training(folder: Path, parts: Parts) -> Counters:
    """Put back what `save_training` wrote; returns how far the run had come.

    Raises:
        ValueError: where the checkpoint was reduced to its weights, or its pool does not divide into the ranks.
    """
    model = parts.model
    if not (folder / "optimizer.json").is_file():
        raise ValueError(
            f"{folder} holds weights alone, as runs of a study do once they are whole: nothing to resume"
        )
    saved = checkpoint.load_state(folder / "optimizer")
    weights = read_weights(model, folder / "model")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(placed(weights[name], tensor))
    if parts.average is not None:
        parts.average.load(read_weights(model, folder / "ema"), model)
    load_moments(parts.optimizer, _names(model), saved["moments"])
    for i, settings in saved.get("groups", {}).items():
        group = parts.optimizer.param_groups[int(i)]
        group.update({key: _like(value, group.get(key)) for key, value in settings.items()})
    callbacks = saved.get("callbacks", {})
    if len(callbacks) != len(parts.callbacks):
        raise ValueError(f"{folder} was written by a run with {len(callbacks)} callback(s): give the trainer as many")
    for i, callback in enumerate(parts.callbacks):
        callback.load_state_dict(callbacks[str(i)])
    states = [checkpoint.load_state(folder / f"rank-{rank}")["process"] for rank in range(saved["ranks"])]
    own = states[parts.rank] if saved["ranks"] == parts.ranks else dealt_anew(states, parts.rank, parts.ranks)
    parts.process.load_state_dict(own)
    if parts.loss_scale is not None and "loss_scale" in saved:
        parts.loss_scale.load_state_dict(saved["loss_scale"])
    return Counters(checkpoint.check(folder)["step"], saved["seconds"], saved["tokens"], saved.get("losses", []))


def read_weights(model: MaskedDiffusionLM, folder: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint's folder holds for a model, with the names of `model.state_dict()`."""
    if model.is_hugging_face:
        return model.load_weights(folder)
    return checkpoint.load_state(folder / "weights")


def load_moments(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], moments: dict[str, dict[str, Any]]
) -> None:
    """Give the optimiser its state back; what it keeps where (AdamW its step count) is for itself to say."""
    packed = optimizer.state_dict()
    for group, numbered in zip(optimizer.param_groups, packed["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if (state := moments.get(names[parameter])) is not None:
                packed["state"][number] = {
                    k: placed(v, parameter) if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()
                }
    optimizer.load_state_dict(packed)


def _whole(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _like(value: Any, like: Any) -> Any:
    """JSON has no tuples, and optimisers compare by type."""
    return tuple(value) if isinstance(like, tuple) else value


def _names(model: MaskedDiffusionLM) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _write_model(
    folder: Path,
    model: MaskedDiffusionLM,
    weights: dict[str, Tensor],
    tokenizer: TextTokenizer | None,
    card: dict[str, Any],
) -> None:
    """Write weights and, of text, what reads them: tokenizer and model card. transformers opens the folder."""
    if model.is_hugging_face:
        model.save_pretrained(folder, weights)
    else:
        folder.mkdir()
        checkpoint.save_state(folder / "weights", weights)
    if tokenizer is None:
        return
    tokenizer.save(folder)
    if model.is_hugging_face and not model.has_adapters:  # adapters alone are no model
        (folder / "README.md").write_text(model_card(model, tokenizer.mask_token, card), encoding="utf-8")

"""What a checkpoint holds of a run, and how it is put back: bitwise; on another number of ranks, dealt anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unmask import __version__
from unmask.data.tokenizers import TextTokenizer
from unmask.distributed import Piece, from_pieces, gathered, is_sharded, placed
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
        ends: whether a callback ended the run at this step.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    ends: bool = False


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

    Of weights that are spread over ranks, each rank writes its own part of the optimiser. Weights and average are
    gathered, one tensor after another, for the first rank's host: their folders open in transformers.

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

    def stages() -> Iterator[Callable[[Path], None]]:
        model, main = parts.model, parts.rank == 0
        moments, pieces = _moments(parts.optimizer, _names(model))
        own = {"process": parts.process.state_dict()}
        yield lambda folder: checkpoint.save_state(folder / f"rank-{parts.rank}", own)
        if pieces:
            yield lambda folder: checkpoint.save_state(folder / f"moments-{parts.rank}", pieces)
        for name, tensors in (("model", model.state_dict()), ("ema", parts.average and parts.average.weights(model))):
            if tensors is not None:
                kept = gathered(tensors, main)
                yield partial(_write_model, name, model, kept, tokenizer, card or {}) if main else _nothing
                del kept
        groups = {
            str(i): {k: v for k, v in group.items() if k not in ("params", *_SWITCHES)}
            for i, group in enumerate(parts.optimizer.param_groups)
        }
        progress: dict[str, Any] = vars(counters) | {"ranks": parts.ranks}
        if parts.loss_scale is not None:
            progress["loss_scale"] = parts.loss_scale.state_dict()
        progress["callbacks"] = {str(i): callback.state_dict() for i, callback in enumerate(parts.callbacks)}
        state = {"moments": moments, "groups": groups, **progress}
        yield (lambda folder: checkpoint.save_state(folder / "optimizer", state)) if main else _nothing

    return checkpoint.write(root, counters.step, __version__, stages(), keep, spared, parts.rank, parts.ranks)


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
    parts.optimizer.zero_grad(set_to_none=True)  # of a step that broke off
    own = model.state_dict()
    with torch.no_grad():
        for name, value in _placed_weights(parts, folder / "model", own):
            own[name].copy_(value)
    if parts.average is not None:
        average = parts.average.weights(model)
        parts.average.load(dict(_placed_weights(parts, folder / "ema", average)), model)
    moments = saved["moments"]
    if (folder / "moments-0.json").is_file():
        pieces = [checkpoint.load_state(folder / f"moments-{rank}") for rank in range(saved["ranks"])]
        moments = _joined(moments, pieces, dict(model.named_parameters()))
    load_moments(parts.optimizer, _names(model), moments)
    for i, settings in saved.get("groups", {}).items():
        group = parts.optimizer.param_groups[int(i)]
        group.update({key: _like(value, group.get(key)) for key, value in settings.items()})
    callbacks = saved.get("callbacks", {})
    if len(callbacks) != len(parts.callbacks):
        raise ValueError(f"{folder} was written by a run with {len(callbacks)} callback(s): give the trainer as many")
    for i, callback in enumerate(parts.callbacks):
        callback.load_state_dict(callbacks[str(i)])
    dealt = [checkpoint.load_state(folder / f"rank-{rank}")["process"] for rank in range(saved["ranks"])]
    same = saved["ranks"] == parts.ranks
    mine = dealt[parts.rank] if same else dealt_anew(dealt, parts.rank, parts.ranks)
    parts.process.load_state_dict(checkpoint.unmapped(mine))
    if parts.loss_scale is not None and "loss_scale" in saved:
        parts.loss_scale.load_state_dict(saved["loss_scale"])
    step, ends = checkpoint.check(folder)["step"], saved.get("ends", True)
    return Counters(step, saved["seconds"], saved["tokens"], saved.get("losses", []), ends)


def read_weights(model: MaskedDiffusionLM, folder: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint's folder holds for a model, with the names of `model.state_dict()`."""
    if model.is_hugging_face:
        return model.load_weights(folder)
    return checkpoint.load_state(folder / "weights")


def load_moments(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], moments: dict[str, dict[str, Any]]
) -> None:
    """Give the optimiser its state back; what it keeps where (AdamW its step count) is for itself to say."""
    packed, given = optimizer.state_dict(), {}
    for group, numbered in zip(optimizer.param_groups, packed["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if (state := moments.get(names[parameter])) is not None:
                packed["state"][number] = given[parameter] = {
                    k: placed(v, parameter) if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()
                }
    optimizer.load_state_dict(packed)
    # torch has rounded it to the weights' dtype, which may be coarser; and on a CPU it is the file's mapping, which
    # would keep a deleted checkpoint on the disk, or its folder from being deleted on one of a network.
    for parameter, state in given.items():
        own = optimizer.state[parameter]
        own.update({k: v.to(own[k].device, copy=True) for k, v in state.items() if isinstance(v, Tensor)})


def _placed_weights(parts: Parts, folder: Path, like: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a folder, each as `like` is. Where they are spread over ranks, only the first one reads them."""
    model = parts.model
    reads = parts.rank == 0 or not is_sharded(model) or model.has_adapters  # of these the folder holds little
    weights = read_weights(model, folder) if reads else {}
    for name, tensor in like.items():
        yield name, placed(weights.get(name), tensor)


def _moments(optimizer: Optimizer, names: dict[Tensor, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an optimiser keeps, by parameter: what every rank has whole, and the pieces that this rank has."""
    every, pieces = {}, {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        every[name] = {k: v for k, v in state.items() if not isinstance(v, DTensor)}
        own = {k: {"shape": list(v.shape), **vars(Piece.of(v))} for k, v in state.items() if isinstance(v, DTensor)}
        pieces |= {name: own} if own else {}
    return every, pieces


def _joined(moments: dict[str, Any], ranks: list[dict[str, Any]], parameters: dict[str, Tensor]) -> dict[str, Any]:
    """Moments, those included that were saved in pieces: each as its parameter is now."""
    found = {name: dict(state) for name, state in moments.items()}
    for name, state in ranks[0].items():
        for key, first in state.items():
            pieces = [Piece(p["offset"], p["values"]) for p in (rank[name][key] for rank in ranks)]
            found[name][key] = from_pieces(pieces, first["shape"], parameters[name])
    return found


def _nothing(folder: Path) -> None:
    """What the other ranks write while the first one writes."""


def _like(value: Any, like: Any) -> Any:
    """JSON has no tuples, and optimisers compare by type."""
    return tuple(value) if isinstance(like, tuple) else value


def _names(model: MaskedDiffusionLM) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _write_model(
    name: str,
    model: MaskedDiffusionLM,
    weights: dict[str, Tensor],
    tokenizer: TextTokenizer | None,
    card: dict[str, Any],
    checkpoint_folder: Path,
) -> None:
    """Write weights and, of text, what reads them: tokenizer and model card. transformers opens the folder."""
    folder = checkpoint_folder / name
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

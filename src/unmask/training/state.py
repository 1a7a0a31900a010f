"""What a checkpoint holds of a training run, and how it is put back: bitwise, on the same number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

import unmask
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.lora import has_adapters
from unmask.models.pretrained import model_card
from unmask.runs import checkpoint

if TYPE_CHECKING:
    from unmask.training.trainer import Trainer


def save_training(trainer: Trainer) -> None:
    """Write the checkpoint of the trainer's step; every rank must call it.

    Raises:
        CheckpointError: where the disk is full or not writable; earlier checkpoints are left as they were.
    """
    accelerator, model, names = trainer.accelerator, trainer.model, _names(trainer.model)
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    moments = {names[p]: {k: whole(v) for k, v in state.items()} for p, state in trainer.optimizer.state.items()}
    average = None
    if trainer.average is not None:
        average = {name: whole(tensor) for name, tensor in trainer.average.weights(model).items()}
    rank_state = {"process": trainer.process.state_dict()}
    rank_file = f"rank-{accelerator.process_index}"

    def fill(folder: Path) -> None:
        _write_model(trainer, folder / "model", weights)
        if average is not None:
            _write_model(trainer, folder / "ema", average)
        progress = {"seconds": trainer.seconds, "tokens": trainer.tokens, "ranks": accelerator.num_processes}
        if trainer.loss_scale is not None:
            progress["loss_scale"] = trainer.loss_scale.state_dict()
        checkpoint.save_state(folder / "optimizer", {"moments": moments, **progress})
        checkpoint.save_state(folder / rank_file, rank_state)

    problem = None
    try:
        if not accelerator.is_main_process:
            folder = checkpoint.temporary_of(trainer.checkpoints, trainer.step)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save_state(folder / rank_file, rank_state)
    except (OSError, SafetensorError) as error:
        problem = checkpoint.CheckpointError(f"could not save step {trainer.step}: {error}")
    raise_together(accelerator, problem, checkpoint.CheckpointError)
    try:
        if accelerator.is_main_process:
            keep = trainer.config.keep_checkpoints
            checkpoint.write(trainer.checkpoints, trainer.step, unmask.__version__, fill, keep)
    except checkpoint.CheckpointError as error:
        problem = error
    raise_together(accelerator, problem, checkpoint.CheckpointError)


def raise_together(accelerator: Accelerator, problem: Exception | None, kind: type[Exception]) -> None:
    """Raise on every rank what one of them met; else the others would wait for it. Every rank must call it.

    Args:
        accelerator: connects the ranks.
        problem: this rank's own, if it met one; it raises this very exception.
        kind: what the other ranks raise.
    """
    met = None if problem is None else f"rank {accelerator.process_index}: {problem}"
    others = gather_object([met]) if accelerator.num_processes > 1 else [met]
    if problem is not None:
        raise problem
    for message in others:
        if message is not None:
            raise kind(message)


def load_training(trainer: Trainer, folder: Path) -> None:
    """Put back what `save_training` wrote.

    Raises:
        ValueError: where the number of ranks differs, or the checkpoint was reduced to its weights.
    """
    model, accelerator = trainer.model, trainer.accelerator
    if not (folder / "optimizer.json").is_file():
        raise ValueError(
            f"{folder} holds weights alone, as runs of a study do once they are whole: nothing to resume"
        )
    saved = checkpoint.load_state(folder / "optimizer")
    if saved["ranks"] != accelerator.num_processes:
        raise ValueError(
            f"{folder} was written by {saved['ranks']} rank(s), this run has {accelerator.num_processes}; "
            "resume with the same number"
        )
    weights = _read_weights(model, folder / "model")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_placed(weights[name], tensor))
    if trainer.average is not None:
        trainer.average.load(_read_weights(model, folder / "ema"), model)
    for parameter, name in _names(model).items():
        if name in saved["moments"]:
            trainer.optimizer.state[parameter] = {
                key: _placed(value, parameter) if value.dim() else value
                for key, value in saved["moments"][name].items()
            }
    rank_file = f"rank-{accelerator.process_index}"
    trainer.process.load_state_dict(checkpoint.load_state(folder / rank_file)["process"])
    trainer.step = checkpoint.check(folder)["step"]
    trainer.seconds, trainer.tokens = saved["seconds"], saved["tokens"]
    if trainer.loss_scale is not None and "loss_scale" in saved:
        trainer.loss_scale.load_state_dict(saved["loss_scale"])


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; a collective under FSDP2, nothing elsewhere."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def is_sharded(model: MaskedDiffusionLM) -> bool:
    """Whether this rank holds only a part of the weights (FSDP2)."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """Put a whole tensor where `like` is, sharded as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def _names(model: MaskedDiffusionLM) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _write_model(trainer: Trainer, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write weights and, of text, what reads them: tokenizer and model card. transformers opens the folder."""
    model, tokenizer = trainer.model, trainer.tokenizer
    if model.is_hugging_face:
        model.save_pretrained(folder, weights)
    else:
        folder.mkdir()
        checkpoint.save_state(folder / "weights", weights)
    if tokenizer is None:
        return
    tokenizer.save(folder)
    if model.is_hugging_face and not has_adapters(model.hugging_face):  # adapters alone are no model
        card = {name: f"`{value}`" for name, value in trainer.run.items()}
        card["training"] = f"Step {trainer.step} of {trainer.config.steps}."
        (folder / "README.md").write_text(model_card(model, tokenizer.mask_token, card), encoding="utf-8")


def _read_weights(model: MaskedDiffusionLM, folder: Path) -> dict[str, Tensor]:
    if model.is_hugging_face:
        return model.load_weights(folder)
    return checkpoint.load_state(folder / "weights")

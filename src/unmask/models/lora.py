"""LoRA on a denoiser, through `peft`: the pretrained weights stay, low-rank updates of them are trained.

The mask token's embedding is trained besides: it is new, or at least unused, in most pretrained models. Its row of
the output layer needs none, as no position ever holds it.

`MaskedDiffusionLM.save_pretrained`, and so every checkpoint, writes the adapters alone, as a folder of peft's;
`unmask.save_pretrained` merges them into a folder that opens without peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from unmask.config import ours, positive_int, require

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
_PREFIX = "base_model.model."  # of names in peft's files


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates W + alpha / rank · B A of linear layers (arXiv 2106.09685)."""

    rank: int = 16
    """Rank of A and B."""
    alpha: float = 32.0
    """Scale of the update, times the rank."""
    dropout: float = 0.0
    """Of the updates' inputs."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers, as peft's target_modules, without the output layer and the token embedding; all-linear:
    every linear layer but the output."""

    def __post_init__(self) -> None:
        positive_int("LoRA: rank", self.rank)
        require(self.alpha > 0, f"LoRA: alpha must be greater than 0, got {self.alpha}")
        require(0 <= self.dropout < 1, f"LoRA: dropout must be in [0, 1), got {self.dropout}")


def add_adapters(hf: PreTrainedModel, lora: LoRA, mask_token_id: int) -> None:
    """Freeze a Hugging Face model and put LoRA adapters into it; the mask token's embedding is trained besides.

    Raises:
        ValueError: where peft is not installed, there are adapters already, no layer has a target's name, or the
            output layer or the token embedding has one.
    """
    peft = _peft()
    require(not has_adapters(hf), "the model has adapters already")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        trainable_token_indices={_embedding_name(hf): [mask_token_id]},
        base_model_name_or_path=hf.name_or_path or None,
    )
    _check_targets(hf, config)
    peft.inject_adapter_in_model(config, hf, ADAPTER)
    for parameter in hf.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # what is trained needs fp32; the frozen weights do not


def has_adapters(hf: PreTrainedModel) -> bool:
    """Whether `add_adapters` was called on a model."""
    return hasattr(hf, "peft_config")


def check_no_adapters(folder: str | Path) -> None:
    """Raise ValueError, with what opens them, for a folder of adapters without the model that they belong to."""
    require(
        not (Path(folder) / WEIGHTS_FILE).is_file(),
        f"{folder} holds LoRA adapters alone: unmask.models.pretrained.load_adapted(folder) puts them on the model "
        "that they belong to, and unmask.save_pretrained writes a merged folder",
    )


def save_adapters(hf: PreTrainedModel, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a folder that peft opens on the same base model.

    Args:
        hf: with adapters.
        folder: where to.
        state: weights to save instead of the model's own, with its names.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = hf.state_dict(keep_vars=True)
    given = {id(own[name]): tensor for name, tensor in (state or {}).items()}  # a tied weight has several names
    found = _adapters_in(hf, {name: given.get(id(tensor), tensor) for name, tensor in own.items()})
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    cast(Any, hf).peft_config[ADAPTER].save_pretrained(str(folder))
    hf.config.save_pretrained(folder)


def load_adapters(hf: PreTrainedModel, folder: str | Path) -> dict[str, Tensor]:
    """Read what `save_adapters` wrote, with the names of `hf.state_dict()`.

    Raises:
        ValueError: for a folder without adapters, or with those of another model.
    """
    file = Path(folder) / WEIGHTS_FILE
    require(file.is_file(), f"{folder} holds no adapters: there is no {WEIGHTS_FILE}")
    own = _adapters_in(hf, hf.state_dict(keep_vars=True))
    saved = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(file).items()}
    wrong = sorted(set(own) ^ set(saved)) or [name for name in own if own[name].shape != saved[name].shape]
    require(not wrong, f"the adapters in {folder} belong to another model or LoRA: {', '.join(wrong[:3])}")
    names = {id(tensor): name for name, tensor in hf.state_dict(keep_vars=True).items()}
    return {names[id(own[name])]: tensor for name, tensor in saved.items()}


@torch.no_grad()
def merge_adapters(hf: PreTrainedModel) -> None:
    """Add the updates to the weights and take the adapters out: the model is plain afterwards, and trainable.

    Raises:
        ValueError: where a merged weight is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    tuned = [name for name, m in hf.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for name in tuned:
        if any(name.startswith(f"{other}.") for other in tuned):
            continue  # wrapped once more, as the two weights of a layer of experts are: the outer one merges both
        layer: Any = hf.get_submodule(name)
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(True, True, [ADAPTER])
        else:
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        hf.set_submodule(name, plain)
    del cast(Any, hf).peft_config
    hf.requires_grad_(True)


def _check_targets(hf: PreTrainedModel, config: Any) -> None:
    """Raise ValueError for targets whose weight is the output layer's or the token embedding's."""
    from peft.tuners.tuners_utils import check_target_module_exists

    weights = [cast(Any, layer).weight for layer in (hf.get_output_embeddings(), hf.get_input_embeddings())]
    for name, module in hf.named_modules():
        if any(getattr(module, "weight", None) is w for w in weights) and check_target_module_exists(config, name):
            raise ValueError(
                f"LoRA: targets match {name}; the output layer and the token embedding take no adapters (the masked "
                "head reads the output's weight itself, and the mask token's embedding is trained as it is): leave "
                "them out, as all-linear does"
            )


def _embedding_name(hf: PreTrainedModel) -> str:
    embedding = hf.get_input_embeddings()
    return next(name for name, module in hf.named_modules() if module is embedding)


def _adapters_in(hf: PreTrainedModel, state: dict[str, Any]) -> dict[str, Any]:
    """The adapters' part of a state, by peft's names. Frozen embeddings, which peft would add, are not among them."""
    return _peft().get_peft_model_state_dict(hf, state, ADAPTER, save_embedding_layers=False)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs peft: pip install 'unmask[lora]'") from None
    return peft


ours(LoRA)

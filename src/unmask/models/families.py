"""What is asked of any Hugging Face language model: its class, its positions, a bidirectional attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging


def check_no_run(folder: str | Path) -> None:
    """Raise ValueError, with where its model lies, for the folder of a run or of a checkpoint."""
    is_model = (Path(folder) / "config.json").is_file()  # a run's folder has one too, and checkpoints
    saved = sorted(Path(folder).glob("checkpoints/step-*/model")) or ([] if is_model else [Path(folder) / "model"])
    saved = [path for path in saved if (path / "config.json").is_file()]
    if saved:
        raise ValueError(f"{folder} is the folder of a run or checkpoint, and its model lies in {saved[-1]}")


def auto_class(config: PretrainedConfig) -> Any:
    """AutoModelForCausalLM or AutoModelForMaskedLM, whichever a config's model is; ValueError for neither.

    A class of transformers that the config names serves where the type of the config is in neither's list: the text
    part of a model with images has such a type.
    """
    name = config.model_type
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "MaskedLM" not in str(config.architectures):
        # Encoders with a causal variant (BERT) are meant as encoders.
        if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "CausalLM" not in str(config.architectures):
            return AutoModelForMaskedLM
        return AutoModelForCausalLM
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel):
        return named
    raise ValueError(f"transformers knows no causal or masked language model of type '{name}'")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config that the language model reads: of a model with images or sound, the part that is about text."""
    return config.get_text_config(decoder=True)


def longest_row(model: PreTrainedModel) -> int | None:
    """How many tokens a row may have; None where the config does not say."""
    positions = getattr(text_config(model.config), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    return positions - first_position(model)


_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads of keys",
    "intermediate_size": "width inside a layer",
    "vocab_size": "tokens",
}


def other_sizes(config: PretrainedConfig, folder: Path) -> list[str]:
    """In which sizes the model in a folder differs from one with this config, in words."""
    saved, own = (text_config(each) for each in (type(config).from_pretrained(folder), config))
    found = {words: (getattr(saved, name, None), getattr(own, name, None)) for name, words in _SIZES.items()}
    return [f"{words} {there}, here {here}" for words, (there, here) in found.items() if there != here]


def first_position(model: nn.Module) -> int:
    """The number that a model's own forward gives to the first position of a row.

    RoBERTa and its like number positions from behind the one of padding, all others from 0.
    """
    config = getattr(model, "config", None)
    positions = None if config is None else getattr(text_config(config), "max_position_embeddings", None)
    # There may be as many tokens as positions, and a table of tokens has a padding row too.
    tokens = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    theirs = set() if tokens is None else set(tokens.modules())
    for module in model.modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if padding is None or table is None or module in theirs:
            continue
        # I-BERT's tables are no nn.Embedding; those of DeepSpeed, parted over ranks, have no rows here.
        rows = module.num_embeddings if isinstance(module, nn.Embedding) else len(table)
        if rows == positions:
            return padding + 1
    return 0


def make_denoiser(model: PreTrainedModel, mask_token_id: int) -> None:
    """Drop the causal mask of a Hugging Face model, and name its mask token, through its config, which is saved.

    Encoders are left as they are. Layers that are causal by themselves would be so again in a saved folder that
    transformers opens alone: they are not touched, and `unmask.models.verify` refuses the model.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.is_causal = False
            module.config.use_cache = False
        if hasattr(module, "mask_token_id"):  # ESM's embedding keeps its own, and would read another when loaded
            cast(Any, module).mask_token_id = mask_token_id
    model.config.mask_token_id = mask_token_id


ON_GPU = ("flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention kernels that a CPU does not run, or not twice alike."""


@contextmanager
def run_on_host(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that lies on the CPU and names a GPU's attention kernel be run there, by sdpa or plain products."""
    kernel = model.config._attn_implementation
    if kernel not in ON_GPU or model.device.type != "cpu":
        yield
        return
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kernel)


def spans(ids: Sequence[int]) -> list[list[int]]:
    """Ascending ids as spans [first, last + 1], which a config has room for."""
    starts = [i for k, i in enumerate(ids) if k == 0 or ids[k - 1] != i - 1]
    ends = [i + 1 for k, i in enumerate(ids) if k == len(ids) - 1 or ids[k + 1] != i + 1]
    return [list(span) for span in zip(starts, ends, strict=True)]


def unspanned(spans: Iterable[Sequence[int]]) -> list[int]:
    """The ids of `spans`."""
    return [i for start, end in spans for i in range(start, end)]


def saved_dtype(folder: str | Path) -> torch.dtype:
    """The narrowest precision that holds every weight of a Hugging Face folder: where they agree, theirs.

    transformers' "auto" is that of a config, which weights may have left since, and an average of them never had.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    found = {tensor.dtype for file in files for tensor in load_file(file).values() if tensor.is_floating_point()}
    return reduce(torch.promote_types, found, torch.bool)  # which every other type holds


def saved_weights(model: PreTrainedModel, folder: str | Path) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder of the same architecture, as `state_dict()` names them.

    Raises:
        ValueError: for weights of other sizes, or missing ones.
    """
    with quiet():
        loaded: Any = type(model).from_pretrained(
            folder,
            config=model.config,
            dtype=saved_dtype(folder),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused here, in words
        )
    saved, report = loaded
    if report["mismatched_keys"]:
        name, there, here = min(report["mismatched_keys"])
        raise ValueError(f"{folder} holds weights of other sizes: {name} {[*there]}, here {[*here]}")
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks weights of this model: {', '.join(sorted(report['missing_keys'])[:3])}")
    return saved.state_dict()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and every submodule back to the mode that it was in, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for every file: a run's own display is enough."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()

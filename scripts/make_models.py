"""Make, or check again, docs/models.md: the supported families of the installed transformers, and why others are not.

    python scripts/make_models.py            # tries every family (some minutes, one core) and writes the page
    python scripts/make_models.py FAMILY ... # tries some and prints what came of them
    python scripts/make_models.py --check    # tries every family and compares with the committed page

A family's own default config is made small by rules on the names of its fields, never by a list of families. A tiny
model with random weights is built of it and wrapped. Its loss and gradients must be those of the library's logits, it
must take a training step, and transformers alone must open what was saved and give the same logits. Whatever a family
does to its logits is switched on where its config has a field for it, so that a default of 1 hides nothing.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
)
from transformers.utils import logging as hf_logging

from unmask import MaskedBatch, MaskedDiffusionLM, TokenBatch
from unmask.models.attention import PADDING

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
VOCABULARY, LARGEST = 96, 16_000_000
AUTO = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}

# What a field becomes whose name matches, the first that does. Widths are 4 heads of 8.
SMALL: list[tuple[str, Any]] = [
    (r"vocab_size|vocab_size_per_layer_input|(text|num)_vocab\w*|char_vocab_size|entity_vocab_size", VOCABULARY),
    (r"(num_)?key_value_heads|num_kv_heads|num_key_value_heads|num_query_groups|multi_query_group_num", 2),
    (r"(num_)?((encoder|decoder)_)?(attention_|attn_)?heads?|n_heads?|num_\w*attention_heads|\w*n_heads", 4),
    (
        r"d_head|rotary_dim|head_dim|global_head_dim|attention_head_size|qk_head_dim|v_head_dim|\w+_head_dim|mamba_(d_)?head\w*",
        8,
    ),
    (r"(n_|num_)?(hidden_|encoder_|decoder_)?layers?|\w*num_(hidden_)?layers|n_layers?", 2),
    (
        r"(hidden|embedding|embed)_size|n_embd|d_model|\w*hidden_dim|hidden_size|emb_dim|dim|d_embed|width|embed_dim",
        32,
    ),
    (r"\w*intermediate_size|n_inner|\w*ffn_dim|d_inner|ffn_hidden_size|dim_feedforward|d_ff|\w*intermediate_dim", 48),
    (r"attention_hidden_size", 64),
    (r"q_lora_rank|kv_lora_rank|qk_rope_head_dim|qk_nope_head_dim|\w*lora_rank|\w*lora_dim\w*", 8),
    (r"(num_|n_)?(local_|routed_|total_)?experts|moe_num_experts|num_routed_experts", 4),
    (r"(num_)?experts_per_tok\w*|moe_topk|moe_k|top_?k(_experts)?|num_selected_experts", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|num_expert_groups", 1),
    (r"max_position_embeddings|n_positions|max_seq_len|seq_length|n_ctx|max_sequence_length", 64),
    (r"pad_token_id", 0),
    (r"bos_token_id|cls_token_id", 1),
    (r"eos_token_id|sep_token_id", 2),
    (r"\w*dropout\w*|\w*_pdrop|layerdrop|\w*layerdrop", 0.0),
]
# What is done to states and logits on the way, switched on.
ACTIVE: list[tuple[str, Any]] = [
    (r"\w*final_logit_softcapping|logits?_soft_?cap\w*", 3.0),
    (
        r"logits_scaling|lm_head_multiplier|logit_scale|output_multiplier\w*|mup_width_multiplier|output_logits_scale",
        0.5,
    ),
]


class Outcome(NamedTuple):
    """What came of a family: "supported", "refused" or "not built", and the reason.

    Of a supported one also the layouts of a row (padding, blocks, documents) that it refuses, with the reasons.
    """

    family: str
    kind: str
    state: str
    reason: str = ""
    layouts: tuple[tuple[str, str], ...] = ()


# Tried one after the other until a model is built that runs by itself.
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"mamba_n_heads": 8, "mamba_d_ssm": 64, "num_heads": 8, "attn_layer_indices": [1]},
    {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    {"layer_types": ["conv", "full_attention"]},
    {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts_per_tok": 2},
    {
        "num_experts_per_tok": 1,
        "partial_rotary_factor": 0.5,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 0,
    },
    {"": "fields without a value get one"},
    {"": "fields without a value get one", "num_key_value_heads": 4},
]


def small(config: PretrainedConfig, variant: dict[str, Any]) -> PretrainedConfig:
    """A config like the given one, of a tiny model."""
    return type(config).from_dict(_shrunk(config.to_dict(), variant))


def _shrunk(saved: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    layers = next((saved[n] for n in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if n in saved), None)
    made: dict[str, Any] = {}
    for name, value in saved.items():
        if name == "per_layer_config" and value:
            made[name] = {1: _shrunk(next(iter(value.values())), variant)}
        elif isinstance(value, dict) and name not in ("rope_parameters", "id2label", "label2id"):
            made[name] = _shrunk(value, variant)
        elif isinstance(value, list) and layers and len(value) == layers:
            made[name] = _two_of(value)
        else:
            made[name] = _small_value(name, value, variant)
    return made


def _small_value(name: str, value: Any, variant: dict[str, Any]) -> Any:
    if isinstance(variant.get(name), list):
        return variant[name]
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return value
    if name in variant and value is not None:
        return variant[name]
    for pattern, wanted in ACTIVE:
        if re.fullmatch(pattern, name):
            return wanted
    for pattern, wanted in SMALL:
        if re.fullmatch(pattern, name) and (value is not None or "" in variant):
            return wanted if value is None else type(value)(wanted)
    return value


def _two_of(values: list[Any]) -> list[Any]:
    """The first layer and one of another kind, if there is any."""
    return [values[0], next((v for v in values if v != values[0]), values[0])]


def build(family: str, kind: str) -> Any:
    """A tiny model of a family with random weights, which runs on tokens by itself."""
    problem: Exception | None = None
    for variant in VARIANTS:
        try:
            config = small(CONFIG_MAPPING[family](), variant)
            with torch.device("meta"):
                size = sum(p.numel() for p in AUTO[kind].from_config(copy.deepcopy(config)).parameters())
            if size > LARGEST:
                raise ValueError(f"its smallest config has {size / 1e6:.0f}M weights")
            torch.manual_seed(0)
            model = AUTO[kind].from_config(config)
            model.eval()(input_ids=torch.arange(3, 11)[None])
        except Exception as error:
            problem = problem or error
            continue
        with torch.no_grad():
            for parameter in model.parameters():  # large enough for predictions to differ by position
                if parameter.dim() >= 2:
                    parameter.normal_(0, 0.15)
        return model
    assert problem is not None
    raise problem


def attempt(family: str, kind: str) -> Outcome:
    """Build a family's tiny model, wrap it, train a step, save it and open it again.

    Raises:
        Exception: for what is none of the three outcomes.
    """
    try:
        model = build(family, kind)
    except Exception as error:
        cause = error.__cause__ or error
        return Outcome(family, kind, "not built", _text(f"{type(cause).__name__}: {cause}"))
    try:
        denoiser = MaskedDiffusionLM.from_hf(model, VOCABULARY - 1, shifted=kind == "causal")
    except ValueError as error:
        return Outcome(family, kind, "refused", _text(str(error).removeprefix(type(model).__name__)))
    _use(denoiser)
    return Outcome(family, kind, "supported", layouts=tuple(_refused_layouts(denoiser)))


def _refused_layouts(denoiser: MaskedDiffusionLM) -> Iterator[tuple[str, str]]:
    """Rows with padding, in blocks and of several documents, where the model says that it cannot be used so."""
    row = torch.arange(3, 11)[None]
    second = (torch.arange(8) >= 4).long()[None]
    for use, told in (("padding", {}), ("blocks", {"block": second}), ("documents", {"document": second})):
        try:
            denoiser.hidden(row, second == 0 if use == "padding" else second >= 0, **told)
        except ValueError as error:
            yield use, _text(str(error).partition(": ")[2])


def _text(reason: str) -> str:
    """A reason as a cell of a table: its first line, and not all of that."""
    line = (reason.strip().splitlines() or [""])[0].replace("|", "/")
    line = line if len(line) <= 160 else f"{line[:160]} ..."
    return line.replace("[", "\\[")  # two pairs of brackets would be a link


def _use(denoiser: MaskedDiffusionLM) -> None:
    """What a user does with a model: losses, gradients, a folder, the folder without this library."""
    tokens = torch.arange(3, 19).view(2, 8)
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[:, 2::2] = True
    real = torch.ones_like(masked)
    real[1, 6:] = PADDING in denoiser.unfit
    masked &= real
    clean = TokenBatch(tokens, real, real, torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    batch = MaskedBatch(clean, masked, None, None)
    noisy = batch.noisy(denoiser.mask_token_id)
    denoiser.train()(batch).loss.backward()
    denoiser.zero_grad()

    library = denoiser.eval().hugging_face
    library.requires_grad_(True)  # what was frozen must have no gradient from the library's logits either
    trained = list(library.parameters())
    logits = _logits(library(input_ids=noisy, attention_mask=real), denoiser, masked)
    expected = torch.nn.functional.cross_entropy(logits, tokens[masked])
    loss = denoiser(batch).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(x, trained, allow_unused=True) for x in (loss, expected))
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-6)
        else:
            assert mine is None, "a weight that the library's logits do not depend on has a gradient"
            assert other is None or not other.any(), "a weight lacks its gradient"

    row = noisy[:1], real[:1], masked[:1]
    predicted = denoiser.predict(*row)
    with tempfile.TemporaryDirectory() as folder:
        denoiser.save_pretrained(folder)
        with torch.no_grad():
            alone = _logits(type(library).from_pretrained(folder).eval()(input_ids=row[0]), denoiser, row[2])
        again = MaskedDiffusionLM.from_pretrained(folder).eval().predict(*row)
    torch.testing.assert_close(predicted, alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(predicted, again, rtol=1e-3, atol=1e-3)


def _logits(output: Any, denoiser: MaskedDiffusionLM, masked: torch.Tensor) -> torch.Tensor:
    """The library's logits at masked positions, read as the denoiser reads them."""
    logits = output.logits.roll(1, 1) if denoiser.shifted else output.logits
    token = torch.arange(logits.shape[-1]) == denoiser.mask_token_id
    return logits[masked].float().masked_fill(token, -torch.inf)


def every(families: Iterable[str] = ()) -> list[Outcome]:
    """What comes of the given families, or of all that the installed transformers has."""
    warnings.filterwarnings("ignore")
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    wanted = [(f, "masked") for f in sorted(MASKED)] + [(f, "causal") for f in sorted(CAUSAL)]
    chosen = set(families)
    return [attempt(family, kind) for family, kind in wanted if not chosen or family in chosen]


def page(found: list[Outcome]) -> str:
    """The text of docs/models.md."""
    supported, refused, unbuilt = ([o for o in found if o.state == s] for s in ("supported", "refused", "not built"))
    parts = [
        "# Families of models",
        f"Written by `python scripts/make_models.py` with transformers {transformers.__version__}; do not edit. "
        "Every causal and masked language model of that version was made small, with random weights. The supported "
        "ones were wrapped; loss and gradients were those of the library's own logits; they took a training step, "
        "were saved, and opened by transformers alone with the same logits. Another version may have other families: "
        "`MaskedDiffusionLM.from_hf` verifies each model that it wraps, and refuses with the reason what it cannot "
        "read.",
        f"Of {len(found)} there are {len(supported)} supported, {len(refused)} refused, and {len(unbuilt)} of which "
        "no tiny model was built, so that nothing is known until one is wrapped.",
    ]
    for kind in ("masked", "causal"):
        names = ", ".join(sorted({f"`{o.family}`" for o in supported if o.kind == kind}))
        parts.append(f"## Supported: {kind}\n\n{names}")
    told: dict[tuple[str, ...], list[str]] = {}
    for outcome in supported:
        for use, reason in outcome.layouts:
            told.setdefault((outcome.family, outcome.kind, reason), []).append(use)
    rows = "\n".join(f"| `{o[0]}` | {o[1]} | {' and '.join(uses)} | {o[2]} |" for o, uses in told.items())
    parts.append(
        "## Supported, but not in every layout\n\n"
        "Rows that are padded must be read as they are without. "
        "Rows in blocks (`Blockwise`, decoding with `causal_blocks`) and rows of several documents that are kept "
        "apart need a backbone that can be told who sees whom and where a row's "
        "positions begin. Each model is tried when it is wrapped; these refuse.\n\n"
        f"| family | kind | refused | reason |\n|---|---|---|---|\n{rows}"
    )
    rows = "\n".join(f"| `{o.family}` | {o.kind} | {o.reason} |" for o in refused)
    parts.append(f"## Refused\n\n| family | kind | reason |\n|---|---|---|\n{rows}")
    rows = "\n".join(f"| `{o.family}` | {o.kind} | {o.reason} |" for o in unbuilt)
    parts.append(f"## Not built\n\n| family | kind | what the attempt ended with |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def lines_of(text: str, families: Iterable[str] = ()) -> set[str]:
    """The outcomes that a page tells, one for each family and kind: "supported causal llama" and the like."""
    told, kind = set(), ""
    for line in text.splitlines():
        if line.startswith("## Supported: "):
            kind = line.removeprefix("## Supported: ")
        elif line.startswith("## "):
            kind = line.removeprefix("## ").lower()
        elif line.startswith("| `"):
            family, of = line.split(" | ")[:2]
            told.add(f"{kind} {of} {family.strip('| `')}")
        elif kind in AUTO:
            told |= {f"supported {kind} {name}" for name in re.findall(r"`([^`]+)`", line)}
    chosen = set(families)
    return {line for line in told if not chosen or line.split()[-1] in chosen}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = every(arguments.families)
    if arguments.families:
        print(*(" | ".join(map(str, outcome)) for outcome in found), sep="\n")
    elif arguments.check:
        committed = PAGE.read_text(encoding="utf-8")
        if committed != page(found):
            sys.exit(f"{PAGE} is out of date: {sorted(lines_of(committed) ^ lines_of(page(found)))}")
    else:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Published masked diffusion models that are a known architecture under other names: LLaDA and Dream.

Their own code is not needed, and not run: the config is read into transformers' own class, and weights are renamed
while they are loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from unmask.config import require


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is read.

    Attributes:
        architecture: transformers' class.
        config: of it.
        mask_token_id: of the model.
        shifted: whether hidden[i - 1] predicts token i.
        renamed: regular expressions of names of weights, and what they become.
    """

    architecture: type[PreTrainedModel]
    config: PretrainedConfig
    mask_token_id: int
    shifted: bool
    renamed: dict[str, str] = field(default_factory=dict)

    def load(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        **options: Any,
    ) -> PreTrainedModel:
        """Read the weights of a folder, or of a model on the hub.

        Args:
            name: of either.
            revision: on the hub: a commit, tag or branch.
            token: for the hub; None or True: the one that is stored on this machine.
            cache_dir: where downloads are kept.
            local_files_only: ask the hub for nothing.
            subfolder: of the weights.
            options: to `from_pretrained` of the architecture; the weights' own dtype by default.

        Raises:
            ValueError: where weights are missing, left over, or of another shape.
        """
        folder = Path(name)
        if not folder.is_dir():
            snapshot = snapshot_download(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=[f"{subfolder}/{kind}" if subfolder else kind for kind in ("*.safetensors", "*.json")],
            )
            folder = Path(snapshot)
        folder = folder / subfolder
        state = {
            self.name_of(saved): tensor
            for file in sorted(folder.glob("*.safetensors"))
            for saved, tensor in load_file(file).items()
        }
        with torch.device("meta"):
            wanted: dict[str, Tensor] = self.architecture(self.config).state_dict()
        if self.config.tie_word_embeddings:
            state.setdefault("lm_head.weight", state.get("model.embed_tokens.weight", torch.empty(0)))
        wrong = sorted(set(wanted) ^ set(state)) or [n for n in wanted if wanted[n].shape != state[n].shape]
        require(not wrong, f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:3])}")
        options = {"dtype": next(iter(state.values())).dtype} | options
        model = self.architecture.from_pretrained(None, config=self.config, state_dict=state, **options)
        model.name_or_path = model.config.name_or_path = str(name)  # as if read from there; adapters name it
        return model

    def name_of(self, saved: str) -> str:
        """The name of a saved weight in the architecture."""
        for pattern, name in self.renamed.items():
            saved = re.sub(pattern, name, saved)
        return saved


_LLADA = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.([qkv])_proj\.": r"model.layers.\1.self_attn.\2_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}

# What a LLaDA config must say for its blocks to be Llama's.
_LLAMA_LIKE = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "clip_qkv": None,
    "input_emb_norm": False,
    "scale_logits": False,
}


_OTHERS = {
    "llada2_moe": "LLaDA2 has code of its own that transformers lacks, and its experts are no known architecture "
    "under another name. Once a release of transformers has the class, it loads as any other does",
    "diffusion_gemma": "DiffusionGemma corrupts with random tokens and has no mask token: uniform diffusion is out "
    "of scope. Train it with transformers' own class; a causal Gemma can be made a masked diffusion model",
}
"""Published diffusion models that cannot be read, and why."""


def known_layout(saved: dict[str, Any]) -> Layout | None:
    """The layout of a config.json, or None where transformers' own classes are meant.

    Raises:
        ValueError: for a LLaDA whose blocks are not Llama's, a config without a mask token, or a published diffusion
            model that cannot be read.
    """
    kind = saved.get("model_type")
    if kind in _OTHERS and not _is_language_model(kind):
        raise ValueError(_OTHERS[kind])
    if kind not in ("llada", "Dream"):
        return None
    if saved.get("mask_token_id") is None:
        raise ValueError(f"a config of type '{kind}' without a mask_token_id cannot be read")
    if kind == "Dream":
        fields = {k: v for k, v in saved.items() if k not in ("model_type", "auto_map", "architectures")}
        return Layout(Qwen2ForCausalLM, Qwen2Config(**fields), saved["mask_token_id"], True)
    other = [f"{name}={saved[name]!r}" for name, value in _LLAMA_LIKE.items() if saved.get(name, value) != value]
    if other:
        raise ValueError(f"this LLaDA differs from Llama in {', '.join(other)}, so transformers cannot read it")
    config = LlamaConfig(
        vocab_size=saved.get("embedding_size") or saved["vocab_size"],
        hidden_size=saved["d_model"],
        num_hidden_layers=saved["n_layers"],
        num_attention_heads=saved["n_heads"],
        num_key_value_heads=saved.get("n_kv_heads") or saved["n_heads"],
        intermediate_size=saved["mlp_hidden_size"],
        max_position_embeddings=saved["max_sequence_length"],
        rms_norm_eps=saved.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": saved.get("rope_theta", 10_000.0)},
        tie_word_embeddings=saved.get("weight_tying", False),
        bos_token_id=saved.get("bos_token_id"),
        eos_token_id=saved.get("eos_token_id"),
        pad_token_id=saved.get("pad_token_id"),
    )
    return Layout(LlamaForCausalLM, config, saved["mask_token_id"], False, _LLADA)


def _is_language_model(kind: str) -> bool:
    """Whether transformers has a causal or masked language model of this type."""
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES

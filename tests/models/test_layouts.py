"""LLaDA and Dream checkpoints, as their authors publish them: tiny ones of the same layout, written here."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unmask import LoRA, from_pretrained, save_pretrained
from unmask.models import layouts
from unmask.models.pretrained import load_adapted

WORDS = ["<pad>", "<bos>", "<eos>", "<mask>", *"abcdefgh"]
MASK = 3
BLOCK = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}
LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "mlp_hidden_size": 24,
    "max_sequence_length": 64,
    "vocab_size": 10,
    "embedding_size": len(WORDS),
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "weight_tying": False,
    "mask_token_id": MASK,
    "eos_token_id": 2,
}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def tokenizer_into(folder):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def published(name):
    """A Llama's name of a weight in LLaDA's words."""
    if name.startswith("model.layers."):
        _, _, number, *rest = name.split(".")
        return f"model.transformer.blocks.{number}.{BLOCK['.'.join(rest[:-1])]}.weight"
    top = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
    return f"model.transformer.{top[name.removesuffix('.weight')]}.weight"


@pytest.fixture
def llada(tmp_path):
    folder = tmp_path / "llada"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLADA))
    state = {published(name): tensor.contiguous() for name, tensor in llama().state_dict().items()}
    parts = sorted(state)
    for i, names in enumerate((parts[:7], parts[7:])):  # two shards
        save_file({name: state[name] for name in names}, folder / f"model-0000{i}-of-00002.safetensors")
    tokenizer_into(folder)
    return folder


@pytest.fixture
def dream(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=1, tie_word_embeddings=False, **sizes)
    )
    hf.save_pretrained(tmp_path / "dream")
    file = tmp_path / "dream" / "config.json"
    auto = {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"}
    changes = {"model_type": "Dream", "architectures": ["DreamModel"], "auto_map": auto, "mask_token_id": MASK}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    tokenizer_into(tmp_path / "dream")
    return tmp_path / "dream", hf


def predictions(model):
    tokens = torch.tensor([[1, 4, MASK, 6, MASK], [1, MASK, 7, 8, 9]])
    return model.eval().predict(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens == MASK)


def test_llada_is_read_as_the_llama_that_it_is(llada, tmp_path):
    model, tokenizer = from_pretrained(llada)
    assert not model.shifted
    assert model.mask_token_id == tokenizer.mask_token_id == MASK
    wanted = llama().state_dict()
    found = model.hugging_face.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    save_pretrained(model, tokenizer, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(wanted)
    again = from_pretrained(tmp_path / "out").model
    assert not again.shifted
    torch.testing.assert_close(predictions(again), predictions(model), rtol=0, atol=0)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(hf.get_input_embeddings().weight, wanted["model.embed_tokens.weight"])


def test_dream_is_a_shifted_qwen2(dream):
    folder, hf = dream
    model, tokenizer = from_pretrained(folder)
    assert model.shifted
    assert model.mask_token_id == tokenizer.mask_token_id == MASK
    found = model.hugging_face.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in hf.state_dict().items())


@pytest.fixture
def hub(llada, tmp_path):
    """A folder of downloads in which the hub's model "some/llada" has a tag "v2" and no branch "main"."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    there = tmp_path / "hub" / "models--some--llada"
    shutil.copytree(llada, there / "snapshots" / commit)
    (there / "refs").mkdir()
    (there / "refs" / "v2").write_text(commit)
    return tmp_path / "hub"


def test_weights_come_from_where_the_model_is_said_to_be(hub, monkeypatch):
    """Config, tokenizer and weights lie in another folder of downloads, at another revision; no network is used."""
    asked, download = [], layouts.snapshot_download
    monkeypatch.setattr(layouts, "snapshot_download", lambda *a, **k: asked.append(k) or download(*a, **k))
    options = {"cache_dir": hub, "local_files_only": True, "token": "secret"}
    model, _ = from_pretrained("some/llada", revision="v2", **options)
    assert torch.equal(model.head.output.weight, llama().lm_head.weight)
    assert {"revision": "v2", **options}.items() <= asked[0].items()
    for wrong in ({"revision": "v1"}, {"revision": "v2", "cache_dir": hub / "other"}):
        with pytest.raises(OSError, match=r"local|cached|connect"):
            from_pretrained("some/llada", **options | wrong)


def test_weights_may_lie_in_a_folder_below(llada, tmp_path):
    (tmp_path / "above").mkdir()
    llada.rename(tmp_path / "above" / "below")
    tokenizer_into(tmp_path / "above")
    assert from_pretrained(tmp_path / "above", subfolder="below").model.mask_token_id == MASK


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_adapters_name_the_model_they_belong_to(name, request, hub, tmp_path):
    if name == "llada":
        base, options = "some/llada", {"cache_dir": hub, "local_files_only": True, "revision": "v2"}
    else:
        base, options = str(request.getfixturevalue("dream")[0]), {}
    model, tokenizer = from_pretrained(base, lora=LoRA(rank=2), **options)
    model.save_pretrained(tmp_path / "adapters")
    saved = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == base
    save_pretrained(model, tokenizer, tmp_path / "out")
    assert f"merged into {base}." in (tmp_path / "out" / "README.md").read_text()
    assert "some/llada" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_adapters_open_again_on_the_model_they_belong_to(name, request, tmp_path):
    made = request.getfixturevalue(name)
    model, _ = from_pretrained(made[0] if isinstance(made, tuple) else made, lora=LoRA(rank=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapters")
    again = load_adapted(tmp_path / "adapters")
    assert (again.shifted, again.mask_token_id) == (model.shifted, model.mask_token_id)
    torch.testing.assert_close(predictions(again), predictions(model))


def test_a_missing_weight_is_named(llada):
    (llada / "model-00000-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"do not fit its config.json: model.layers.0"):
        from_pretrained(llada)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_type": "sequential"}, "block_type='sequential'"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0"),  # has no weight that could be left over
        ({"mask_token_id": None}, "without a mask_token_id"),
    ],
)
def test_what_is_not_that_architecture_is_refused(llada, change, message):
    (llada / "config.json").write_text(json.dumps(LLADA | change))
    with pytest.raises(ValueError, match=message):
        from_pretrained(llada)


@pytest.mark.parametrize(
    ("kind", "why"), [("llada2_moe", "transformers lacks"), ("diffusion_gemma", "random tokens")]
)
def test_published_diffusion_models_that_cannot_be_read_say_why(tmp_path, kind, why):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=why):
        from_pretrained(tmp_path)

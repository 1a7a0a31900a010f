"""LoRA: only the adapters and the mask token's embedding move; what goes out merged is what was trained."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BitsAndBytesConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from unmask import (
    ExactCount,
    IndependentMasking,
    LoRA,
    MaskedDiffusionLM,
    Trainer,
    TrainingConfig,
    add_lora,
    from_pretrained,
    save_pretrained,
)
from unmask.config import from_json, to_json
from unmask.models import lora

WORDS = ["<pad>", "<bos>", "<eos>", *"abcdefgh"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MASK = len(WORDS)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path):
    """A pretrained tiny Llama, as somebody else would have written it."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / "base")
    config = LlamaConfig(vocab_size=len(WORDS), tie_word_embeddings=request.param, initializer_range=0.2, **SIZES)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def rows():
    tokens = [[1, *(3 + (i + j) % 8 for j in range(7))] for i in range(8)]
    return Dataset.from_dict({"tokens": tokens, "maskable": [[False] + [True] * 7] * 8})


def load(base):
    torch.manual_seed(1)
    return from_pretrained(base, lora=LoRA(rank=4))


def trained(model, rows, out, steps=30, **options):
    config = TrainingConfig(
        steps=steps,
        batch_size=8,
        learning_rate=3e-2,
        warmup_steps=0,
        schedule="constant",
        precision="fp32",
        threads=1,
        tracker="none",
        log_every=1,
        checkpoint_every=steps // 2,
        **options,
    )
    trainer = Trainer(model, IndependentMasking(mask=ExactCount()), rows, None, config, out=out)
    return trainer.train(resume=out.exists())


def predictions(model):
    tokens = torch.tensor([[1, 3, MASK, 5, MASK], [1, MASK, 7, 8, 9]])
    return model.eval().predict(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens == MASK)


def test_only_adapters_and_the_mask_embedding_move_and_the_loss_falls(base, rows, tmp_path):
    model, _ = load(base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, rows, tmp_path / "run")
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or "trainable_tokens" in name}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_merged_folder_opens_without_us_and_says_the_same(base, rows, tmp_path):
    model, tokenizer = load(base)
    trained(model, rows, tmp_path / "run", steps=4)
    live = predictions(model)
    save_pretrained(model, tokenizer, tmp_path / "out", {"data": "letters"})
    torch.testing.assert_close(predictions(model), live, rtol=0, atol=0)  # it keeps its adapters
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor([[1, 3, MASK, 5, MASK], [1, MASK, 7, 8, 9]])
    logits = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits.roll(1, 1)[tokens == MASK]
    logits[:, MASK] = -torch.inf
    torch.testing.assert_close(logits, live, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions(from_pretrained(tmp_path / "out").model), live, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "rank 4" in card
    assert "merged" in card
    assert str(base) in card


def test_checkpoint_holds_adapters_alone_and_opens_with_peft(base, rows, tmp_path):
    from peft import PeftModel

    model, _ = load(base)
    last = trained(model, rows, tmp_path / "run", steps=4)
    assert (last / "model" / "adapter_config.json").is_file()
    assert not (last / "model" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="LoRA adapters alone"):
        MaskedDiffusionLM.from_pretrained(last / "model")
    hf = AutoModelForCausalLM.from_pretrained(base)
    hf.resize_token_embeddings(MASK + 1, mean_resizing=False)
    opened = MaskedDiffusionLM.from_hf(hf, MASK, shifted=True)
    PeftModel.from_pretrained(hf, last / "model")
    torch.testing.assert_close(predictions(opened), predictions(model), rtol=1e-5, atol=1e-5)


def test_interrupted_run_ends_with_the_same_adapters_and_average(base, rows, tmp_path):
    whole = trained(load(base).model, rows, tmp_path / "whole", steps=4, ema_decay=0.5)
    again = tmp_path / "again"
    trained(load(base).model, rows, again, steps=4, ema_decay=0.5)
    for file in (again / "checkpoints").glob("step-00000004/*"):
        file.unlink() if file.is_file() else [part.unlink() for part in file.iterdir()]
    with pytest.warns(UserWarning, match="looking for an earlier one"):
        last = trained(load(base).model, rows, again, steps=4, ema_decay=0.5)
    for part in ("model", "ema"):
        file = f"{part}/adapter_model.safetensors"
        assert (last / file).read_bytes() == (whole / file).read_bytes()


def test_bad_use_is_refused(base, tmp_path):
    model, _ = load(base)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model)
    model.save_pretrained(tmp_path / "adapters")
    other, _ = from_pretrained(base, lora=LoRA(rank=2))
    with pytest.raises(ValueError, match="belong to another model or LoRA"):
        other.load_weights(tmp_path / "adapters")
    with pytest.raises(ValueError, match="holds no adapters"):
        model.load_weights(base)
    for opened in (from_pretrained, MaskedDiffusionLM.from_pretrained):
        with pytest.raises(ValueError, match=r"LoRA adapters alone.*load_adapted"):
            opened(tmp_path / "adapters")
    with pytest.raises(ValueError, match="rank must be an integer"):
        LoRA(rank=0)
    assert from_json(to_json(LoRA(targets=("q_proj",)))) == LoRA(targets=("q_proj",))


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (("q_proj", "lm_head"), "lm_head"),
        (r".*\.(q_proj|v_proj)|lm_head", "lm_head"),
        (("q_proj", "embed_tokens"), "model.embed_tokens"),
    ],
)
def test_adapters_of_what_the_head_reads_or_the_mask_token_trains_are_refused(base, targets, name):
    model, _ = from_pretrained(base)
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=f"targets match {name};"):
        add_lora(model, LoRA(targets=targets))
    assert {name: p.shape for name, p in model.named_parameters()} == before
    add_lora(model)  # nothing was begun


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), "all-linear"])
def test_an_adapter_of_the_output_layer_would_learn_nothing(base, targets, monkeypatch):
    """Why they are refused: without the check no gradient reaches it. All others get one."""
    monkeypatch.setattr(lora, "_check_targets", lambda *_: None)
    model = add_lora(from_pretrained(base).model, LoRA(rank=2, targets=targets))
    tokens = torch.tensor([[1, 3, MASK, 5, MASK], [1, MASK, 7, 8, 9]])
    hidden = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool))[tokens == MASK]
    loss, _, _ = model.head(hidden, torch.tensor([4, 6, 3]), torch.ones(3), MASK)
    loss.backward()
    idle = {name for name, p in model.hugging_face.named_parameters() if "lora_B" in name and p.grad is None}
    assert {name.split(".lora_B")[0] for name in idle} == ({"lm_head"} if "lm_head" in targets else set())


def test_a_decoder_of_an_encoder_is_its_output_layer():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MaskedDiffusionLM.from_config(BertConfig(vocab_size=9, tie_word_embeddings=False, **sizes), 8)
    with pytest.raises(ValueError, match=r"targets match cls\.predictions\.decoder"):
        add_lora(model, LoRA(targets=("query", "decoder")))
    add_lora(model, LoRA(rank=2))
    assert any("transform.dense.lora_A" in name for name, _ in model.named_parameters())  # the head's other layer
    assert type(model.head.output) is torch.nn.Linear


WRAPPED = {
    "a layer at the top": lambda v: DistilBertConfig(vocab_size=v, dim=16, hidden_dim=24, n_layers=1, n_heads=2),
    "qwen3_moe": lambda v: Qwen3MoeConfig(vocab_size=v, head_dim=8, num_key_value_heads=1, **EXPERTS),
    "mixtral": lambda v: MixtralConfig(vocab_size=v, head_dim=8, num_key_value_heads=1, **EXPERTS),
}
EXPERTS = SIZES | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize("kind", WRAPPED)
def test_adapters_train_and_merge_wherever_they_sit(kind, tmp_path):
    """In layers that are children of the model itself, and two on the weights of one layer of experts."""
    torch.manual_seed(0)
    model = add_lora(MaskedDiffusionLM.from_config(WRAPPED[kind](12), MASK), LoRA(rank=2))
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = {id(p) for p in model.hugging_face.parameters() if p.requires_grad}
    assert {id(p) for p in adapters.values()} == own
    tokens = torch.tensor([[1, 3, MASK, 5, MASK], [1, MASK, 7, 8, 9]])
    hidden = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool))[tokens == MASK]
    model.head(hidden, torch.tensor([4, 6, 3]), torch.ones(3), MASK)[0].backward()
    with torch.no_grad():
        for name, parameter in adapters.items():
            assert parameter.grad is not None, name
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    live = predictions(model)
    model.save_pretrained(tmp_path / "adapters")
    back = model.load_weights(tmp_path / "adapters")
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<|mask|>")
    save_pretrained(model, tokenizer, tmp_path / "merged")
    merged = MaskedDiffusionLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(predictions(merged), live, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions(model), live, rtol=0, atol=0)


def test_half_precision_weights_get_adapters_in_fp32():
    model = MaskedDiffusionLM.from_config(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8), 8)
    add_lora(model.to(torch.bfloat16), LoRA(rank=2, targets=("c_attn",)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    tokens = torch.tensor([[1, 2, 8, 4]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.predict(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens == 8)
    assert logits[:, :8].isfinite().all()


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8.0), (4, 8.0), (4, 3.0)])
def test_an_update_is_the_product_of_its_adapters_times_alpha_over_rank(rank, alpha):
    """W + alpha / rank · B A (arXiv 2106.09685)."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=MASK + 1, **SIZES))
    weight = plain.model.layers[0].mlp.up_proj.weight.detach().clone()
    model = MaskedDiffusionLM.from_hf(plain, MASK, shifted=True)
    add_lora(model, LoRA(rank=rank, alpha=alpha))
    layer = model.hugging_face.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    expected = weight + alpha / rank * b.detach() @ a.detach()
    lora.merge_adapters(model.hugging_face)
    torch.testing.assert_close(model.hugging_face.model.layers[0].mlp.up_proj.weight.detach(), expected)


FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True)


def test_a_base_in_four_bits_without_lora_is_refused(base):
    with pytest.raises(ValueError, match=r"weights in few bits.*give lora=unmask.LoRA"):
        from_pretrained(base, quantization_config=FOUR_BITS)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_a_base_in_four_bits_without_bitsandbytes_is_refused(base):
    with pytest.raises(ValueError, match="4 or 8 bits need bitsandbytes: pip install bitsandbytes"):
        from_pretrained(base, quantization_config=FOUR_BITS, lora=LoRA(rank=4))


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_adapters_on_a_base_in_four_bits_train_and_are_saved_alone(base, rows, tmp_path):
    torch.manual_seed(1)
    model, _ = from_pretrained(base, quantization_config=FOUR_BITS, lora=LoRA(rank=4))
    quantised = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert quantised
    trained(model, rows, tmp_path / "run")
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in quantised.items())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])

"""Any family of transformers is read as its own forward reads it, or refused with the reason; no third outcome.

`scripts/make_models.py` tries a family: loss, gradients, a training step, a saved folder. docs/models.md is what it
found.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
)

from unmask import MaskedDiffusionLM
from unmask.models.verify import find_backbone

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
V, MASK = 23, 22

# Heads of encoders; multipliers, caps and scales; a backbone inside the backbone; experts; what must be refused.
SOME = [
    "albert",
    "distilbert",
    "esm",
    "gemma2",
    "gpt_neo",
    "granite",
    "falcon_h1",
    "mobilebert",
    "modernbert-decoder",
]
SOME += ["opt", "qwen3_moe", "roberta", "stablelm"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_models", ROOT / "scripts" / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(script):
    return script.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", SOME)
def test_a_family_is_what_the_page_says(family, script):
    told = script.lines_of(script.page(script.every([family])), [family])
    assert told
    assert told == script.lines_of(committed(script), [family])


@pytest.mark.slow
def test_the_page_tells_of_every_family(script):
    """Each is supported, refused or not built, and a crash of any is an error here."""
    assert script.page(script.every()) == committed(script)


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, initializer_range=0.5, **SIZES, **options))


class Louder(LlamaForCausalLM):
    """A family that does more to its logits than its output layer does, where nobody would look."""

    def forward(self, input_ids, attention_mask=None, **options):
        result = super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        result.logits = result.logits * (1 + input_ids[..., None])
        return result


class Mixing(LlamaForCausalLM):
    """A family whose read-out mixes positions."""

    def forward(self, input_ids, attention_mask=None, **options):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        result = super().forward(input_ids=input_ids[:, :1])
        result.logits = self.lm_head(states.cumsum(1))
        return result


@pytest.mark.parametrize("kind", [Louder, Mixing])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_forward_that_does_more_is_refused_by_name(kind, shifted):
    with pytest.raises(ValueError, match=f"{kind.__name__} .*(more than|other logits)"):
        MaskedDiffusionLM.from_hf(kind(llama().config), MASK, shifted)


def test_a_model_that_drops_the_padding_mask_is_refused():
    model = llama()
    forward = model.model.forward
    model.model.forward = lambda *args, **options: forward(*args, **{**options, "attention_mask": None})
    with pytest.raises(ValueError, match="lets padding leak"):
        MaskedDiffusionLM.from_hf(model, MASK)


@pytest.mark.parametrize("build", [llama, lambda: BertForMaskedLM(BertConfig(vocab_size=V, **SIZES))])
def test_verifying_leaves_a_model_as_it_was(build):
    model = build()
    model.train()
    model.get_input_embeddings().eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    MaskedDiffusionLM.from_hf(model, MASK)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_half_precision_weights_are_verified_in_their_own_dtype():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        MaskedDiffusionLM.from_hf(llama().to(dtype), MASK)
        with pytest.raises(ValueError, match="other logits"):
            MaskedDiffusionLM.from_hf(Louder(llama().config).to(dtype), MASK)


def test_a_model_without_values_is_wrapped_unseen():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama().config)
    assert MaskedDiffusionLM.from_hf(model, MASK).backbone is model.model


def test_the_backbone_is_what_the_forward_runs():
    model = llama()
    assert find_backbone(model, MASK)[0] is model.model
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2))
    assert find_backbone(model, MASK)[0] is model.transformer


def test_positions_are_counted_from_behind_that_of_padding():
    model = MaskedDiffusionLM.from_config(RobertaConfig(vocab_size=V, max_position_embeddings=12, **SIZES), MASK)
    assert model.longest_row == 10
    tokens = torch.arange(3, 13)[None]
    assert model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)).isfinite().all()
    assert MaskedDiffusionLM.from_hf(llama(max_position_embeddings=9), MASK).longest_row == 9

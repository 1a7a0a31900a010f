"""Any family of transformers is read as its own forward reads it, or refused with the reason; no third outcome.

`scripts/make_models.py` tries a family: loss, gradients, a training step, a saved folder. docs/models.md is what it
found.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    Gemma4Config,
    GPT2Config,
    GPT2LMHeadModel,
    IBertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen3MoeConfig,
    RobertaConfig,
)

from unmask import Decoding, MaskedDiffusionLM, generate
from unmask.models.families import first_position
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


def test_a_model_whose_positions_see_only_the_next_ones_is_refused():
    model = llama()
    forward = model.model.forward

    def near(input_ids, attention_mask=None, **options):
        seen = torch.ones(2 * [input_ids.shape[1]], dtype=torch.bool).tril(1)[None, None]
        return forward(input_ids=input_ids, attention_mask=seen, **options)

    model.model.forward = near
    with pytest.raises(ValueError, match="the first of 8 positions does not see the last"):
        MaskedDiffusionLM.from_hf(model, MASK)


def test_a_model_that_drops_the_padding_mask_is_refused():
    model = llama()
    forward = model.model.forward
    model.model.forward = lambda *args, **options: forward(*args, **{**options, "attention_mask": None})
    with pytest.raises(ValueError, match="lets padding leak"):
        MaskedDiffusionLM.from_hf(model, MASK)


def test_a_model_that_reads_a_row_otherwise_with_padding_behind_it_takes_none():
    """Its mask may be another one as soon as there is one; rows of one length are as they were."""
    model = llama()
    forward = model.model.forward

    def causal_where_padded(input_ids, attention_mask=None, **options):
        if attention_mask is not None:
            order = torch.ones(2 * [input_ids.shape[1]], dtype=torch.bool).tril()
            attention_mask = (attention_mask[:, None, None, :].bool() & order) | torch.eye(len(order)).bool()
        return forward(input_ids=input_ids, attention_mask=attention_mask, **options)

    model.model.forward = causal_where_padded
    denoiser = MaskedDiffusionLM.from_hf(model, MASK)
    tokens, real = torch.arange(3, 11)[None], torch.ones(1, 8, dtype=torch.bool)
    assert denoiser.hidden(tokens, real).isfinite().all()
    real[0, -2:] = False
    with pytest.raises(ValueError, match="LlamaModel cannot be used with padding: its states are then off by"):
        denoiser.hidden(tokens, real)
    same, other = (
        Dataset.from_dict({"tokens": [[3] * n for n in lengths], "maskable": [[True] * n for n in lengths]})
        for lengths in ((6, 6), (6, 5))
    )
    assert denoiser.check_rows(same) == (6, 6)
    with pytest.raises(ValueError, match=r"the data set has rows of 5 to 6 tokens, and .*with padding"):
        denoiser.check_rows(other)


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
    assert find_backbone(model, {MASK})[0] is model.model
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2))
    assert find_backbone(model, {MASK})[0] is model.transformer


def test_positions_are_counted_from_behind_that_of_padding():
    model = MaskedDiffusionLM.from_config(RobertaConfig(vocab_size=V, max_position_embeddings=12, **SIZES), MASK)
    assert model.longest_row == 10
    tokens = torch.arange(3, 13)[None]
    assert model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)).isfinite().all()
    assert MaskedDiffusionLM.from_hf(llama(max_position_embeddings=9), MASK).longest_row == 9


@pytest.mark.parametrize(
    ("kind", "behind"), [(LlamaConfig, 0), (BertConfig, 0), (RobertaConfig, 1), (IBertConfig, 1)]
)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_vocabulary_of_as_many_tokens_as_positions_is_not_taken_for_them(kind, behind, padding):
    """A table of tokens has a padding row of its own, which says nothing of positions."""
    for positions in (V, V + 9):
        config = kind(vocab_size=V, max_position_embeddings=positions, pad_token_id=padding, **SIZES)
        model = MaskedDiffusionLM.from_config(config, MASK)
        assert model.longest_row == positions - behind * (padding + 1)
    assert first_position(model.backbone) == behind * (padding + 1)


ESM = SIZES | {"vocab_size": V, "mask_token_id": MASK, "pad_token_id": 1, "token_dropout": True}
LEARNED = {
    "gpt2": lambda: GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=12),
    "bert": lambda: BertConfig(vocab_size=V, **SIZES),
    "roberta": lambda: RobertaConfig(vocab_size=V, pad_token_id=1, **SIZES),
    "llama": lambda: LlamaConfig(vocab_size=V, **SIZES),
}


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("shifted", [False, True])
def test_where_a_row_is_padded_changes_nothing(kind, shifted):
    torch.manual_seed(0)
    config = LEARNED[kind]()
    config.initializer_range = 0.5
    model = MaskedDiffusionLM.from_config(config, MASK, shifted).eval()
    row, masked = torch.tensor([3, 4, MASK, 5, MASK, 6]), torch.tensor([0, 0, 1, 0, 1, 0]).bool()
    nothing, real = torch.zeros(9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.bool)
    tokens, places = nothing.repeat(3, 1), real.clone()
    for line, columns in enumerate([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]]):
        tokens[line, columns], real[line, columns], places[line, columns] = row, True, masked
    alone = model.predict(row[None], torch.ones_like(row, dtype=torch.bool)[None], masked[None])
    torch.testing.assert_close(model.predict(tokens, real, places), alone.repeat(3, 1), rtol=1e-4, atol=1e-4)


def test_a_shifted_model_refuses_a_first_token_behind_padding():
    model = MaskedDiffusionLM.from_hf(llama(), MASK, shifted=True)
    tokens = torch.tensor([[0, MASK, 4]])
    with pytest.raises(ValueError, match="position 0"):
        model.predict(tokens, torch.tensor([[False, True, True]]), tokens == MASK)


def test_a_row_of_masks_alone_is_refused_where_it_would_be_zero_over_zero(masked_batch):
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(EsmConfig(**ESM), MASK)
    tokens = torch.tensor([[3, 4, 5], [6, 7, 8]])
    masked = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep a token of each row given"):
        model(masked_batch(tokens, masked))
    masked[:, 0] = False
    assert model(masked_batch(tokens, masked)).loss.isfinite()
    plain = MaskedDiffusionLM.from_config(RobertaConfig(vocab_size=V, pad_token_id=1, **SIZES), MASK)
    assert plain(masked_batch(tokens, torch.ones_like(masked))).loss.isfinite()


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(policy="random"), Decoding(block_size=2), Decoding("left_to_right", steps=2)]
)
def test_so_it_is_where_only_some_of_its_masks_are_predicted(decoding, token_batch):
    """What a forward reads counts, not what is asked of it: a block, or the next position of a known order."""
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(EsmConfig(**ESM), MASK)
    tokens = torch.tensor([[3, 4, 5, 6], [6, 7, 8, 9]])
    maskable = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep a token of each row given"):
        generate(model, token_batch(tokens, maskable), decoding)
    maskable[:, -1] = False
    made = generate(model, token_batch(tokens, maskable), decoding)
    assert made.confidence.isfinite().all()


@pytest.mark.parametrize("kind", [int, np.int64])
def test_a_saved_model_reads_the_mask_token_that_it_was_wrapped_with(kind, tmp_path):
    """ESM's embedding treats its own mask token by itself, and keeps which that is."""
    torch.manual_seed(0)
    hf = EsmForMaskedLM(EsmConfig(**ESM | {"mask_token_id": 3, "emb_layer_norm_before": False}))
    model = MaskedDiffusionLM.from_hf(hf, kind(4), unused=[kind(7)]).eval()
    model.save_pretrained(tmp_path)
    again = MaskedDiffusionLM.from_pretrained(tmp_path).eval()
    tokens = torch.tensor([[5, 4, 9, 6, 4, 8]])
    asked = tokens, torch.ones_like(tokens).bool(), tokens == 4
    torch.testing.assert_close(again.predict(*asked), model.predict(*asked))


def test_weights_that_no_prediction_depends_on_are_frozen(masked_batch):
    model = MaskedDiffusionLM.from_config(EsmConfig(**ESM), MASK)
    tokens = torch.arange(3, 11)[None]
    model(masked_batch(tokens, torch.arange(8)[None] % 2 == 1)).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert idle
    assert all("contact_head" in name for name in idle)


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen3MoeConfig])
def test_the_routers_loss_is_the_librarys_where_the_config_asks_for_it(kind, masked_batch):
    sizes = SIZES | {"head_dim": 8, "num_key_value_heads": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    sizes |= {"num_experts": 4, "num_local_experts": 4, "router_aux_loss_coef": 0.5, "initializer_range": 0.3}
    tokens, masked = torch.arange(3, 19).view(2, 8), torch.arange(16).view(2, 8) % 3 == 1
    real = torch.ones_like(masked)
    real[1, 6:] = False
    batch = masked_batch(tokens, masked & real, maskable=real, attention=real)
    weights = torch.full(tokens.shape, 0.25)
    losses, found = [], None
    for asked in (False, True):
        torch.manual_seed(0)
        model = MaskedDiffusionLM.from_config(kind(vocab_size=V, output_router_logits=asked, **sizes), MASK).train()
        found = model(batch, weights)
        losses.append(found.loss)
        assert (found.balance is None) != asked
    hf = model.hugging_face
    theirs = hf(input_ids=batch.noisy(MASK), attention_mask=real, output_router_logits=True)
    expected = 0.5 * theirs.aux_loss * weights[masked & real].sum()
    torch.testing.assert_close(found.balance, expected.detach())
    torch.testing.assert_close(losses[1] - losses[0], expected)
    gates = [p for name, p in model.named_parameters() if "gate.weight" in name]
    ours, library = (torch.autograd.grad(x, gates) for x in (losses[1], expected))
    torch.manual_seed(0)
    plain = MaskedDiffusionLM.from_config(kind(vocab_size=V, **sizes), MASK).train()
    without = [p for name, p in plain.named_parameters() if "gate.weight" in name]
    for mine, other, rest in zip(
        ours, library, torch.autograd.grad(plain(batch, weights).loss, without), strict=True
    ):
        torch.testing.assert_close(mine, other + rest, rtol=1e-4, atol=1e-6)


def test_a_wrappers_text_config_is_what_counts():
    text = SIZES | {"vocab_size": V, "head_dim": 8, "num_key_value_heads": 1, "max_position_embeddings": 9}
    text |= {"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 4, "per_layer_config": {}}
    text |= {"final_logit_softcapping": 0.5, "initializer_range": 1.0, "layer_types": ["full_attention"] * 2}
    model = MaskedDiffusionLM.from_config(Gemma4Config(text_config=text), MASK)
    assert model.longest_row == 9
    tokens = torch.arange(3, 11)[None]
    every = torch.ones_like(tokens, dtype=torch.bool)
    logits = model.eval().predict(tokens, every, every)[:, :MASK]
    assert 0.1 < float(logits.abs().max()) <= 0.5

import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen3Config,
)

from unmask import Decoding, MaskedDiffusionLM, generate

V, MASK, L = 23, 22, 8
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
NO_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None),
    "gpt2": lambda: GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "bert": lambda: BertConfig(**SIZES),
    "modernbert": lambda: ModernBertConfig(**SIZES, **NO_SPECIAL),
}
DECODERS = [name for name in CONFIGS if "bert" not in name]
each = pytest.mark.parametrize("name", CONFIGS)
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager", "plain"])


def make(name, attention="sdpa", shifted=False, std=0.5, seed=0, dtype=torch.float64):
    """Build a tiny model with weights large enough for predictions to differ by position."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config.initializer_range = std
    config._attn_implementation = attention
    return MaskedDiffusionLM.from_config(config, MASK, shifted).to(dtype).eval()


@pytest.fixture(scope="module")
def batch(masked_batch):
    """Three rows of which the second is short: its last three positions are padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, MASK, (3, L), generator=generator)
    real = torch.ones(3, L, dtype=torch.bool)
    real[1, 5:] = False
    masked = torch.rand(3, L, generator=generator) < 0.4
    masked[:, 0], masked[:, 3] = False, True
    return masked_batch(tokens, masked & real, maskable=real, attention=real)


@each
@each_attention
@pytest.mark.parametrize("padded", [False, True])
def test_the_first_position_sees_the_last(name, attention, padded):
    model = make(name, attention)
    tokens = torch.arange(3, 3 + L)[None]
    real = torch.ones(1, L, dtype=torch.bool)
    changed = tokens.clone()
    changed[0, -1] = 20
    if padded:
        tokens, changed, real = (nn.functional.pad(x, (0, 2)) for x in (tokens, changed, real))
    with torch.no_grad():
        moved = (model.hidden(tokens, real) - model.hidden(changed, real)).abs()
    assert float(moved[0, 0].max()) > 1e-4


@each
@each_attention
def test_padding_does_not_leak(name, attention, batch):
    model = make(name, attention)
    row, real = batch.clean.tokens[1:2], batch.clean.attention[1:2]
    with torch.no_grad():
        alone = model.hidden(row[:, :5], real[:, :5])[0]
        for filling in (0, 7, MASK):
            among_others = model.hidden(
                batch.clean.tokens.masked_fill(~batch.clean.attention, filling), batch.clean.attention
            )
            close = 1e-5 if attention == "eager" else 1e-7  # the library's "eager" has a softmax of single precision
            torch.testing.assert_close(among_others[1, :5], alone, rtol=close, atol=close)


@each
@pytest.mark.parametrize("shifted", [False, True])
def test_loss_scores_and_predictions_come_from_the_same_hidden_states(name, shifted, batch):
    model = make(name, shifted=shifted)
    output = model(batch, needs=("log_confidence", "margin", "entropy"))
    logits = model.predict(batch.noisy(MASK), batch.clean.attention, batch.masked)
    log_p, masked = logits.log_softmax(-1), batch.masked
    targets = batch.clean.tokens[masked]
    torch.testing.assert_close(output.nll[masked], -log_p.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(output.scores.log_confidence[masked], log_p.amax(-1))
    torch.testing.assert_close(output.scores.entropy[masked], torch.special.entr(log_p.exp()).sum(-1))
    torch.testing.assert_close(output.loss, output.nll.sum() / masked.sum())
    assert output.nll[~masked].abs().sum() == 0
    assert torch.equal(output.scores.nll, output.nll)


@pytest.mark.parametrize("name", [*DECODERS, "bert", "modernbert"])
@pytest.mark.parametrize("shifted", [False, True])
def test_predictions_are_those_of_the_library_model_read_one_to_the_left_where_shifted(name, shifted, batch):
    model = make(name, shifted=shifted)
    ours = model.predict(batch.noisy(MASK), batch.clean.attention, batch.masked)
    library = model._container[0].to(torch.float64).eval()
    with torch.no_grad():
        logits = library(input_ids=batch.noisy(MASK), attention_mask=batch.clean.attention).logits
    if shifted:
        logits = logits.roll(1, dims=1)
    theirs = logits[batch.masked]
    torch.testing.assert_close(ours[:, :MASK], theirs[:, :MASK])


def test_a_shifted_model_reads_position_i_from_the_hidden_state_before_it(batch):
    plain, shifted = make("llama"), make("llama", shifted=True)
    with torch.no_grad():
        a, b = (model.hidden(batch.noisy(MASK), batch.clean.attention) for model in (plain, shifted))
    assert torch.equal(b[:, 1:], a[:, :-1])
    assert not torch.equal(b[:, 1:], a[:, 1:])


def test_a_shifted_model_refuses_a_masked_first_position_everywhere(token_batch, masked_batch):
    model = make("llama", shifted=True)
    tokens = [[3, 4, 5]]
    with pytest.raises(ValueError, match="position 0"):
        model(masked_batch(tokens, [[True, False, False]]))
    with pytest.raises(ValueError, match="position 0"):
        generate(model, token_batch(tokens))
    kept = generate(model, token_batch(tokens, maskable=[[False, True, True]]))
    assert kept.tokens[0, 0] == 3


def test_a_shifted_model_decodes_and_trains_on_the_same_predictions(token_batch, masked_batch):
    """What the sampler takes as most probable has the confidence that the training pass reports."""
    model = make("llama", shifted=True)
    tokens = torch.arange(3, 3 + L)[None]
    maskable = torch.ones(1, L, dtype=torch.bool)
    maskable[0, 0] = False
    first = generate(model, token_batch(tokens, maskable=maskable), Decoding(tokens_per_step=L))
    output = model(masked_batch(first.tokens, maskable, maskable=maskable), needs=("log_confidence",))
    torch.testing.assert_close(-output.nll[maskable], output.scores.log_confidence[maskable])


@each
def test_the_loss_is_weighted_token_by_token_and_reaches_every_trained_weight(name, batch):
    model = make(name)
    weights = torch.rand(batch.masked.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = model(batch, weights)
    torch.testing.assert_close(output.loss, (weights * output.nll).sum())
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_without_any_mask_has_zero_loss_and_zero_gradients(batch, masked_batch):
    """A rank without a mask still takes part in the backward pass: others wait for it."""
    model = make("llama")
    empty = masked_batch(batch.clean.tokens, torch.zeros_like(batch.masked))
    output = model(empty, needs=("log_confidence",))
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


@each
def test_an_untrained_model_starts_near_the_logarithm_of_the_vocabulary(name, batch):
    model = make(name, std=0.02, dtype=torch.float32)
    assert float(model(batch).loss.detach()) == pytest.approx(math.log(V - 1), abs=0.25)


@each
@pytest.mark.parametrize("shifted", [False, True])
def test_a_saved_folder_comes_back_exactly(name, shifted, batch, tmp_path):
    model = make(name, shifted=shifted, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    back = MaskedDiffusionLM.from_pretrained(tmp_path).eval()
    assert (back.mask_token_id, back.shifted) == (MASK, shifted)
    saved, found = model.state_dict(), back.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)
    arguments = batch.noisy(MASK), batch.clean.attention, batch.masked
    assert torch.equal(model.predict(*arguments), back.predict(*arguments))


def check_weights_read_back(model, folder, **options):
    model.save_pretrained(folder, **options)
    loaded, saved = model.load_weights(folder), options.get("state", model.state_dict())
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key].double(), loaded[key].double()) for key in saved)


@each
def test_saved_weights_are_read_back_by_name(name, tmp_path):
    check_weights_read_back(make(name, dtype=torch.float32), tmp_path)


def test_weights_saved_under_other_names_are_read_back(tmp_path):
    check_weights_read_back(MaskedDiffusionLM.from_config(GPTNeoXConfig(**SIZES), MASK), tmp_path)


@pytest.mark.parametrize("inside", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saved_weights_of_several_precisions_keep_every_bit(inside, tmp_path):
    model = make("llama", dtype=torch.bfloat16)
    model.backbone.norm.to(inside).weight.data.copy_(torch.rand(model.backbone.norm.weight.shape))
    check_weights_read_back(model, tmp_path)


@pytest.mark.parametrize("name", [*DECODERS, "bert", "modernbert"])
def test_a_saved_folder_opens_without_us_and_predicts_the_same(name, batch, tmp_path):
    model = make(name, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    opener = AutoModelForCausalLM if name in DECODERS else AutoModelForMaskedLM
    alone = opener.from_pretrained(tmp_path).eval()
    row = slice(0, 1)  # without padding, as most people will call it
    noisy, masked = batch.noisy(MASK)[row], batch.masked[row]
    with torch.no_grad():
        theirs = alone(input_ids=noisy).logits[masked]
    ours = model.predict(noisy, batch.clean.attention[row], masked)
    torch.testing.assert_close(ours[:, :MASK], theirs[:, :MASK], atol=1e-5, rtol=1e-4)


@each
def test_other_weights_can_be_saved_in_place_of_the_models_own(name, tmp_path):
    model = make(name, dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    average = {key: value * 0.5 for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state=average)
    back = MaskedDiffusionLM.from_pretrained(tmp_path).state_dict()
    for key, value in average.items():
        assert torch.equal(back[key], value)
        assert torch.equal(model.state_dict()[key], before[key])
    check_weights_read_back(model, tmp_path, state=average)


def test_what_a_model_does_to_its_logits_is_kept(batch):
    torch.manual_seed(0)
    config = Gemma2Config(
        **SIZES, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5
    )
    config._attn_implementation = "eager"
    model = MaskedDiffusionLM.from_config(config, MASK).eval()
    ours = model.predict(batch.noisy(MASK), batch.clean.attention, batch.masked)
    assert 0.1 < float(ours[:, :MASK].abs().max()) <= 0.5


@pytest.mark.parametrize("vocab_size", [1, 2])
def test_a_vocabulary_with_nothing_to_choose_among_is_refused(vocab_size):
    config = LlamaConfig(**SIZES | {"vocab_size": vocab_size}, bos_token_id=0, eos_token_id=0)
    with pytest.raises(ValueError, match=f"vocabulary of {vocab_size} leaves {vocab_size - 1} tokens"):
        MaskedDiffusionLM.from_config(config, 0)


def test_models_and_folders_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outside the vocabulary of 23"):
        MaskedDiffusionLM.from_config(LlamaConfig(**SIZES), V)
    with pytest.raises(ValueError, match="no language-model head"):
        MaskedDiffusionLM.from_hf(make("llama").backbone, MASK)
    with pytest.raises(ValueError, match=r"no config\.json"):
        MaskedDiffusionLM.from_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mask_token_id"):
        MaskedDiffusionLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not made from a Hugging Face model"):
        MaskedDiffusionLM(nn.Identity(), nn.Linear(4, V), MASK).save_pretrained(tmp_path)
    wider = make("llama")
    make("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="lacks weights"):
        wider.load_weights(tmp_path / "other")

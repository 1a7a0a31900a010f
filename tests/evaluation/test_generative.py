"""Generative perplexity: equal to the judge's own loss, and never without its company."""

from __future__ import annotations

import math
import shutil
from dataclasses import fields, replace

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from unmask import MaskedDiffusionLM, TokenBatch, generate
from unmask.data.tokenizers import bpe_tokenizer, character_tokenizer
from unmask.evaluation.estimate import Estimate
from unmask.evaluation.generative import (
    GenerativePerplexity,
    distinct,
    generative_perplexity,
    judge_texts,
    sample_tokens,
    unigram_entropy,
)
from unmask.sampling import Decoding

TEXTS = ["the cat sat on the mat. ", "a dog ran. ", "the end of it all. "]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A tiny random causal model with its own tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = bpe_tokenizer(TEXTS * 5, vocab_size=290)
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder, tokenizer


@pytest.fixture(scope="module")
def writer():
    tokenizer = character_tokenizer(TEXTS)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None
    )
    return MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id), tokenizer


def test_judged_nats_are_the_causal_model_s_own_loss(judge):
    folder, tokenizer = judge
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    nats, _ = judge_texts(TEXTS, folder, batch_size=2)  # padded to different lengths
    for text, value, count in zip(TEXTS, nats.nats.tolist(), nats.tokens.tolist(), strict=True):
        tokens = torch.tensor([tokenizer.encode(text).tolist()])
        with torch.no_grad():
            loss = float(model(input_ids=tokens, labels=tokens).loss)
        assert value / count == pytest.approx(loss, abs=1e-5)


def test_a_judge_with_a_first_token_scores_every_token_after_it(judge, tmp_path):
    """As the judge was trained: its own first token stands before each text, and is not scored itself."""
    folder, tokenizer = judge
    shutil.copytree(folder, tmp_path / "judge")
    reader = AutoTokenizer.from_pretrained(folder)
    reader.bos_token = reader.convert_ids_to_tokens(5)
    reader.save_pretrained(tmp_path / "judge")
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    found, _ = judge_texts(TEXTS, tmp_path / "judge")
    without, _ = judge_texts(TEXTS, folder)
    for text, value, count, fewer in zip(TEXTS, found.nats, found.tokens, without.tokens, strict=True):
        tokens = torch.tensor([[5, *tokenizer.encode(text).tolist()]])
        with torch.no_grad():
            loss = float(model(input_ids=tokens, labels=tokens).loss)
        assert float(value / count) == pytest.approx(loss, abs=1e-5)
        assert count == fewer + 1 == tokens.shape[1] - 1


def test_figures_come_together(judge, writer):
    model, tokenizer = writer
    found, texts = generative_perplexity(model, tokenizer, judge[0], texts=5, length=12, batch_size=2)
    assert len(texts) == found.texts == 5
    assert found.steps == 12
    assert found.temperature == 1
    assert found.tokenizer == tokenizer.fingerprint
    assert found.perplexity.low <= found.perplexity.value <= found.perplexity.high
    assert math.isclose(found.perplexity.value, judge_texts(texts, judge[0])[0].perplexity.value)
    again, same = generative_perplexity(model, tokenizer, judge[0], texts=5, length=12, batch_size=5)
    assert same == texts
    assert again.unigram_entropy == found.unigram_entropy
    fast, _ = generative_perplexity(
        model, tokenizer, judge[0], texts=2, length=12, decoding=Decoding(tokens_per_step=4, temperature=0.5)
    )
    assert (fast.steps, fast.temperature) == (3, 0.5)


@pytest.mark.parametrize("shifted", [False, True])
def test_texts_begin_with_the_prompt_and_the_rest_is_the_decoding_loop_s(writer, shifted):
    model, tokenizer = writer
    model = MaskedDiffusionLM.from_hf(model.hugging_face, model.mask_token_id, shifted)
    prompt, decoding = tokenizer.encode("the ").tolist(), Decoding(policy="random", temperature=1.0)
    found, steps = sample_tokens(model, tokenizer, 5, 12, decoding, seed=3, batch_size=2, prompt=prompt)
    assert (found.shape, steps) == ((5, 12), 8)
    assert found[:, :4].tolist() == [prompt] * 5
    given = torch.zeros(5, 12, dtype=torch.int64)
    given[:, :4] = torch.tensor(prompt)
    maskable = (torch.arange(12) > 3).expand(5, -1)
    row = torch.arange(5)
    batch = TokenBatch(given, maskable, torch.ones_like(maskable), row, torch.zeros_like(row), torch.ones(5))
    options = {"end_token_id": tokenizer.end_token_id, "suppress_tokens": tokenizer.suppress_tokens}
    ended = generate(model, batch, decoding, seed=3, **options)
    assert not torch.isin(found, torch.tensor(tokenizer.suppress_tokens)).any()
    assert torch.equal(found, ended.tokens)
    free, _ = sample_tokens(model, tokenizer, 5, 12, decoding, seed=3)
    assert free.shape == (5, 12)  # without what a shifted model is given before the text
    assert free[:, :4].tolist() != [prompt] * 5


def test_what_leaves_nothing_to_generate_or_does_not_fit_is_refused(writer):
    model, tokenizer = writer
    shifted = MaskedDiffusionLM.from_hf(model.hugging_face, model.mask_token_id, shifted=True)
    sample_tokens(shifted, tokenizer, 1, 32, Decoding(steps=1), prompt=[1])
    for other, length, prompt, message in (
        (model, 4, [1] * 4, "the prompt has 4 tokens, a text 4"),
        (model, 33, [], "takes a row of 33, the model reads 32"),
        (shifted, 32, [], "takes a row of 33, the model reads 32"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_tokens(other, tokenizer, 1, length, Decoding(), prompt=prompt)


@pytest.mark.parametrize("name", [f.name for f in fields(GenerativePerplexity)])
def test_it_cannot_be_built_with_one_missing(name):
    whole = {
        "perplexity": Estimate(2.0, 1.0, 3.0),
        "unigram_entropy": Estimate(1.0, 0.5, 1.5),
        "distinct": (0.1, 0.2, 0.3),
        "temperature": 0.0,
        "steps": 4,
        "length": 8,
        "texts": 2,
        "unjudged": 0,
        "tokenizer": "t",
        "judge": "j",
    }
    GenerativePerplexity(**whole)
    with pytest.raises(TypeError):
        GenerativePerplexity(**{key: value for key, value in whole.items() if key != name})
    with pytest.raises(ValueError, match=f"nothing without {name}"):
        GenerativePerplexity(**whole | {name: None})
    with pytest.raises(ValueError, match="not finite"):
        replace(GenerativePerplexity(**whole), temperature=math.nan)


def test_repetition_shows_in_its_company():
    varied, repeated = torch.arange(12).view(2, 6), torch.tensor([[1, 2] * 3] * 2)
    assert unigram_entropy(varied).value == pytest.approx(math.log(6))
    assert unigram_entropy(repeated).value == pytest.approx(math.log(2))
    assert distinct(varied, 2) == 1
    assert distinct(repeated, 2) == 2 / 10
    assert distinct(varied, 7) == 0


def test_what_follows_the_end_of_a_text_is_neither_judged_nor_counted(judge, writer):
    """A model that writes ends most of the time: spelled-out padding would be most of what the judge reads."""
    model, tokenizer = writer
    bias = torch.zeros(tokenizer.vocab_size)
    bias[tokenizer.eos_token_id] = 1.5
    head = torch.nn.Linear(16, tokenizer.vocab_size)
    with torch.no_grad():
        head.weight.copy_(model.head.output.weight)
        head.bias.copy_(bias)
    ends = MaskedDiffusionLM(model.backbone, head, tokenizer.mask_token_id)
    end = tokenizer.decode([tokenizer.eos_token_id])
    found, texts = generative_perplexity(ends, tokenizer, judge[0], texts=20, length=12)
    assert not any(end in text for text in texts)
    nats, _ = judge_texts(texts, judge[0])
    assert 0 < found.unjudged == int((nats.tokens == 0).sum()) < 20
    assert found.perplexity.value == pytest.approx(nats.perplexity.value)
    characters = "".join(texts).replace("<|unknown|>", "?")
    assert found.distinct[0] == len(set(characters)) / len(characters)


def test_texts_of_a_vocabulary_without_an_end_are_judged_whole(judge):
    """Its end-of-text token is the space, as in text8: nothing is an end."""
    tokenizer = character_tokenizer(alphabet="27")
    assert tokenizer.end_token_id is None
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": None}
    config = GPT2Config(vocab_size=tokenizer.vocab_size, **sizes)
    model = MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id)
    found, texts = generative_perplexity(model, tokenizer, judge[0], texts=3, length=9)
    assert {len(text) for text in texts} == {9}
    assert found.unjudged == 0


def saved(model, tokenizer, folder):
    tokenizer.save(folder)
    model.save_pretrained(folder)
    return folder


def test_a_judge_that_sees_what_it_is_to_predict_is_refused(judge, tmp_path):
    """Whichever way it came to that: a family of encoders, or a causal one that was made a denoiser and saved."""
    folder, tokenizer = judge
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    denoiser = MaskedDiffusionLM.from_hf(LlamaForCausalLM.from_pretrained(folder), tokenizer.mask_token_id)
    shifted = MaskedDiffusionLM.from_hf(LlamaForCausalLM.from_pretrained(folder), tokenizer.mask_token_id, True)
    encoder = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **sizes))
    for number, model in enumerate((denoiser, shifted, encoder)):
        with pytest.raises(ValueError, match="sees the tokens that it is to predict"):
            judge_texts(TEXTS, saved(model, tokenizer, tmp_path / str(number)))


def test_a_judge_is_looked_at_before_anything_is_generated(judge, writer, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.evaluation.generative.sample_tokens", lambda *_: pytest.fail("texts were generated"))
    denoiser = MaskedDiffusionLM.from_hf(LlamaForCausalLM.from_pretrained(judge[0]), judge[1].mask_token_id)
    for wrong in (saved(denoiser, judge[1], tmp_path / "denoiser"), "package:no_such_package"):
        with pytest.raises(ValueError, match=r"is to predict|is not installed"):
            generative_perplexity(*writer, wrong, texts=2, length=4)


def test_what_cannot_be_judged_is_refused(judge, writer):
    model, _ = writer
    with pytest.raises(ValueError, match="reads 64"):
        judge_texts(["a b c d e f g h " * 30, "a b"], judge[0])
    with pytest.raises(ValueError, match="no text has a token"):
        judge_texts(["", ""], judge[0])
    with pytest.raises(ValueError, match="do not belong together"):
        generative_perplexity(model, judge[1], judge[0])

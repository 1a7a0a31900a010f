"""More embedding rows than the tokenizer has tokens: the spare ids are no tokens, on every path."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unmask import (
    Decoding,
    IndependentMasking,
    LoRA,
    MaskedDiffusionLM,
    MaskedMean,
    Trainer,
    TrainingConfig,
    from_pretrained,
    generate,
    save_pretrained,
)
from unmask.data import RowStream
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.generative import sample_tokens
from unmask.evaluation.harness import HarnessModel
from unmask.evaluation.likelihood import likelihood
from unmask.integrations import MaskedDiffusionTrainer
from unmask.models.pretrained import load_adapted
from unmask.runs.config import load_model

WORDS = ["<pad>", "<eos>", *"abcdefgh"]
ROWS, TOKENS = 24, len(WORDS) + 1  # of the embeddings; the tokenizer's, the mask token included
SPARE = list(range(TOKENS, ROWS))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A pretrained model whose spare rows, equal and large, would be most likely everywhere."""
    folder = tmp_path_factory.mktemp("padded")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[TOKENS:] = 30 * model.lm_head.weight[2:3]
        model.model.embed_tokens.weight[TOKENS:] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(padded):
    model, tokenizer = from_pretrained(padded)
    return model, TextTokenizer.from_hugging_face(tokenizer)


def rows(count: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, len(WORDS), (count, 8), generator=generator)
    maskable = torch.ones_like(tokens, dtype=torch.bool)
    maskable[:, 0] = False
    return Dataset.from_dict({"tokens": tokens.tolist(), "maskable": maskable.tolist()})


def spare_of(model: MaskedDiffusionLM) -> list[int]:
    return [] if model.head.unused is None else model.head.unused.tolist()


def probabilities(model: MaskedDiffusionLM) -> torch.Tensor:
    noisy = torch.full((1, 6), model.mask_token_id)
    noisy[:, 0] = 3
    masked = noisy == model.mask_token_id
    return model.predict(noisy, torch.ones_like(masked), masked).softmax(-1)


def test_ids_that_no_token_has_get_no_probability(loaded):
    model, _ = loaded
    assert spare_of(model) == SPARE
    found = probabilities(model)
    assert (found[:, SPARE] == 0).all()
    torch.testing.assert_close(found[:, : len(WORDS)].sum(-1), torch.ones(5))


def test_they_are_never_sampled(loaded):
    model, tokenizer = loaded
    tokens, _ = sample_tokens(model, tokenizer, 16, 8, Decoding(policy="random", temperature=1.0))
    assert (tokens < len(WORDS)).all()
    batch = RowStream(rows()).rows(torch.arange(4))
    assert (generate(model, batch).tokens < len(WORDS)).all()


def test_likelihood_is_that_of_a_model_without_them(loaded):
    model, _ = loaded
    cut = LlamaForCausalLM(model.hugging_face.config)
    cut.load_state_dict(model.hugging_face.state_dict())
    cut.resize_token_embeddings(TOKENS)
    small = MaskedDiffusionLM.from_hf(cut, model.mask_token_id, shifted=True)
    assert spare_of(small) == []
    torch.testing.assert_close(likelihood(model, rows()).nats, likelihood(small, rows()).nats)


def settings(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{"steps": 2, "batch_size": 4, "precision": "fp32", "threads": 1, "tracker": "none"} | changes
    )


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "lora"])
def test_a_run_keeps_them_apart_and_opens_again(padded, tmp_path, lora):
    if lora is not None:
        pytest.importorskip("peft")
    model, tokenizer = from_pretrained(padded, lora=lora)
    text = TextTokenizer.from_hugging_face(tokenizer)
    trainer = Trainer(
        model, IndependentMasking(), rows(), MaskedMean(), settings(), out=tmp_path / "run", tokenizer=text
    )
    last = trainer.train()
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert first["nll"] < 2 * math.log(len(WORDS))  # a spare row that counted would cost tens of nats
    again = load_model(last) if lora is None else load_adapted(last / "model")
    assert spare_of(again) == SPARE
    torch.testing.assert_close(probabilities(again.eval()), probabilities(model.eval()))


def test_a_saved_folder_keeps_them_apart_whoever_opens_it(loaded, padded, tmp_path):
    model, tokenizer = from_pretrained(padded)
    save_pretrained(model, tokenizer, tmp_path / "saved")
    for again in (from_pretrained(tmp_path / "saved").model, MaskedDiffusionLM.from_pretrained(tmp_path / "saved")):
        assert spare_of(again) == SPARE
        torch.testing.assert_close(probabilities(again.eval()), probabilities(model.eval()))


def test_the_hugging_face_trainer_takes_them(loaded, tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True
    )
    trainer = MaskedDiffusionTrainer(loaded[0], arguments, masking=IndependentMasking(), train_dataset=rows())
    assert trainer.train().training_loss < 2 * math.log(len(WORDS))
    assert spare_of(MaskedDiffusionLM.from_pretrained(tmp_path / "checkpoint-1")) == SPARE


@dataclass
class Instance:
    args: tuple


def test_the_lm_eval_adapter_takes_them(loaded):
    model, tokenizer = loaded
    adapter = HarnessModel(model, tokenizer, max_length=16)
    ((nats, _),) = adapter.loglikelihood([Instance(("a b", "c d"))])
    assert -4 * math.log(len(WORDS)) < nats < 0
    (made,) = adapter.generate_until([Instance(("a b", {"max_gen_toks": 6}))])
    assert set(made.split()) <= set(WORDS)


def test_a_tokenizer_that_meets_a_model_rules_its_spare_ids_out(loaded):
    """Also where the model was built by hand: what no token spells is never written."""
    _, tokenizer = loaded
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id, shifted=True)
    sample_tokens(model, tokenizer, 1, 4, Decoding(temperature=1.0))
    assert spare_of(model) == SPARE


def test_rows_that_hold_one_are_refused_before_training(loaded, tmp_path):
    bad = Dataset.from_dict({"tokens": [[2, 3], [2, ROWS - 1]], "maskable": [[False, True]] * 2})
    with pytest.raises(ValueError, match=r"row 1 of the data set holds an id that no token has"):
        Trainer(loaded[0], IndependentMasking(), bad, MaskedMean(), settings(), out=tmp_path / "run")


def test_an_id_that_is_no_row_or_the_mask_cannot_be_ruled_out(loaded):
    model, _ = loaded
    for wrong in (ROWS, -1, model.mask_token_id):
        with pytest.raises(ValueError, match="cannot be ruled out"):
            model.rule_out([wrong])

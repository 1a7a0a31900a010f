"""A vocabulary that does not match the model's: both sizes are named before a text is tokenized."""

from __future__ import annotations

import pytest
from datasets import Dataset

from unmask import IndependentMasking, Trainer, TrainingConfig, from_pretrained
from unmask.recipes import PretrainedModel, TextData, TextModel, sotu

TINY = {"layers": 1, "width": 16, "heads": 2, "positions": 32}


@pytest.mark.parametrize(
    ("vocabulary", "model", "message"),
    [
        ("bpe", TextModel(28, **TINY), r"the tokenizer has 270 tokens, the model 28: .* vocab_size=270"),
        ("letters", TextModel(64, **TINY), r"mask token is 27 \(of 28 tokens\), the model's 63 \(of 64\)"),
        ("words", TextModel(28, **TINY), r"the tokenizer has 33 tokens, the model 28"),
        ("words", TextModel(99, **TINY), r"mask token is 32 \(of 33 tokens\), the model's 98 \(of 99\)"),
        ("bpe", "words", r"the tokenizer has 270 tokens, the model 33"),
        ("letters", "words", r"mask token is 27 \(of 28 tokens\), the model's 32 \(of 33\)"),
    ],
)
def test_tokenizer_and_model_of_a_run_must_belong_together(
    tiny, prose, words, tmp_path, monkeypatch, vocabulary, model, message
):
    monkeypatch.setattr(TextData, "load", lambda _: pytest.fail("texts were tokenized"))
    monkeypatch.setattr(TextData, "held_out", lambda _: pytest.fail("texts were tokenized"))
    data = TextData(prose, vocabulary=words if vocabulary == "words" else vocabulary, vocab_size=270, length=32)
    with pytest.raises(ValueError, match=message):
        tiny(sotu(), tmp_path / "run", data=data, model=PretrainedModel(words) if model == "words" else model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", [TextModel(99, mask_token_id=32, **TINY), "words"])
def test_a_model_may_have_tokens_to_spare(tiny, prose, words, tmp_path, model):
    data = TextData(prose, vocabulary=words, length=32, first_given=True)
    tiny(sotu(), tmp_path / "run", data=data, model=PretrainedModel(words) if model == "words" else model)


def test_rows_of_another_tokenizer_are_refused_before_training(words, tmp_path):
    """A trainer knows rows alone, so it names the row and the model's size."""
    model, _ = from_pretrained(words)
    rows = Dataset.from_dict({"tokens": [[1, 2], [3, 33]], "maskable": [[False, True]] * 2})
    with pytest.raises(ValueError, match="row 1 of the data set holds a token outside the vocabulary of 33: another"):
        Trainer(model, IndependentMasking(), rows, None, TrainingConfig(steps=1), out=tmp_path / "run")

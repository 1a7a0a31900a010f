"""Rows that a model cannot read are told in words wherever a model is measured or decodes, before any forward."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, LlamaConfig

from unmask import Decoding, MaskedDiffusionLM, RowStream, generate
from unmask.evaluation.exact import exact_likelihood, importance_weighted, order_likelihood
from unmask.evaluation.likelihood import likelihood
from unmask.evaluation.locality import locality

V, MASK, LONGEST = 12, 11, 8
MODELS = {
    "learned positions": GPT2Config(vocab_size=V, n_positions=LONGEST, n_embd=16, n_layer=1, n_head=2),
    "rotary positions": LlamaConfig(
        vocab_size=V,
        max_position_embeddings=LONGEST,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    ),
}
GOOD = [1, 2, 3]
UNFIT = {
    "too long": ([1] * (LONGEST + 1), "longer than the model's 8 positions"),
    "outside": ([1, V, 2], "outside the vocabulary of 12"),
    "below 0": ([1, -1, 2], "below 0"),
}
"""A row that is not fit, and what is said of it."""


@pytest.fixture(params=MODELS)
def model(request):
    denoiser = MaskedDiffusionLM.from_config(MODELS[request.param], MASK)
    denoiser.backbone.register_forward_hook(lambda *_: pytest.fail("there was a forward"))
    return denoiser


def rows(last: list[int]) -> Dataset:
    tokens = [GOOD, GOOD, last]
    return Dataset.from_dict({"tokens": tokens, "maskable": [[False] + [True] * (len(row) - 1) for row in tokens]})


@pytest.mark.parametrize("measure", [likelihood, exact_likelihood, order_likelihood, importance_weighted, locality])
@pytest.mark.parametrize("kind", [*UNFIT, "mask token"])
def test_they_are_not_measured(model, measure, kind):
    last, told = UNFIT.get(kind, ([1, MASK, 2], "already holds the mask token"))
    with pytest.raises(ValueError, match=f"row 2 of the data set .*{told}"):
        measure(model, rows(last))


@pytest.mark.parametrize("measure", [likelihood, exact_likelihood, order_likelihood, importance_weighted, locality])
def test_nothing_is_not_measured(model, measure):
    with pytest.raises(ValueError, match=r"^the data set is empty$"):
        measure(model, rows(GOOD).select([]))


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(policy="random", block_size=2, causal_blocks=True)])
def test_they_are_not_decoded(model, kind, decoding):
    last, told = UNFIT[kind]
    told = told if kind == "too long" else "outside the vocabulary of 12"
    dataset = rows(last).map(lambda row: {"maskable": [False] * (len(row["tokens"]) - 1) + [True]})
    with pytest.raises(ValueError, match=f"row 2 .*{told}"):
        generate(model, RowStream(dataset).rows(torch.arange(3)), decoding)

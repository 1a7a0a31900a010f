"""Training with blocks through the whole loop; autoregression first, masked diffusion after it."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from unmask import (
    ELBO,
    Blockwise,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    RowMean,
    RowStream,
)
from unmask.training import read_metrics

VOCABULARY, MASK = 10, 9
MASKINGS = {
    "independent": Blockwise(IndependentMasking(mask=ExactCount(), coupling="stratified"), 2),
    "curriculum": Blockwise(IndependentMasking(), ((0, 1), (7, 3), (12, 6))),
    "puma": Blockwise(ProgressiveUnmasking(stages=4, threshold=0.2), ((0, 1), (7, 3), (12, 6))),
}


@pytest.fixture
def llama():
    def make(shifted=False, std=0.02, seed=0):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, initializer_range=std,
        )  # fmt: skip
        return MaskedDiffusionLM.from_config(config, MASK, shifted)

    return make


@pytest.mark.parametrize("masking", MASKINGS.values(), ids=MASKINGS)
def test_a_resumed_run_is_bitwise_equal(trainer, llama, short_rows, state_of, stop_at, masking):
    settings = {"masking": masking, "steps": 16, "checkpoint_every": 3, "evaluate_every": 1, "dataset": short_rows}
    whole = trainer("whole", model=llama(), **settings).train()
    for evaluations in (6, 5):  # within the first size, and within the second
        run = trainer("cut", model=llama(), evaluate=stop_at(evaluations), **settings)
        with pytest.raises(stop_at.error):
            run.train(resume=True)
    assert state_of(trainer("cut", model=llama(seed=3), **settings).train(resume=True)) == state_of(whole)


@pytest.mark.parametrize("name", MASKINGS)
def test_micro_batches_change_nothing(trainer, llama, short_rows, weights_in, name):
    masking = MASKINGS[name]
    objective = ELBO() if masking.has_density else RowMean()
    runs = []
    for micro in (None, 3, 1):
        run = trainer(
            f"micro-{micro}", model=llama(std=0.1).double(), masking=masking, dataset=short_rows, objective=objective,
            steps=10, micro_batch_size=micro, learning_rate=0.01,
        )  # fmt: skip
        runs.append(weights_in(run.train()))
    for other in runs[1:]:
        for key, value in runs[0].items():
            torch.testing.assert_close(other[key], value, atol=1e-9, rtol=1e-9)


def causal_nats(folder, tokens):
    """Mean nats a token of the library's own model, read from the folder without us."""
    library = AutoModelForCausalLM.from_pretrained(folder, is_causal=True).eval()
    with torch.no_grad():
        output = library(input_ids=tokens, labels=tokens)
        ours = output.logits.index_fill(-1, torch.tensor(MASK), -torch.inf)
    return float(output.loss - (output.logits.logsumexp(-1) - ours.logsumexp(-1))[:, :-1].mean())


def test_autoregression_then_masked_diffusion_on_the_same_weights(trainer, llama, short_rows):
    causal = Blockwise(IndependentMasking(mask=ExactCount()), size=1)
    settings = {"dataset": short_rows, "learning_rate": 0.01, "steps": 60}
    first = trainer("causal", model=llama(shifted=True), masking=causal, **settings).train()
    nll = [line["loss"] for line in read_metrics(first.parent.parent) if line["kind"] == "train"]
    assert nll[0] == pytest.approx(math.log(VOCABULARY - 1), abs=0.1)
    assert nll[-1] < 0.2  # each token follows from the one before it

    # The library's model, without us, has the same loss on the same rows: no mask is drawn by chance.
    model = MaskedDiffusionLM.from_pretrained(first / "model").eval()
    assert model.shifted
    batch = causal.start(RowStream(short_rows), 8).draw()
    tokens = batch.clean.tokens
    loss = model(batch, RowMean().weights(batch) / RowMean().normaliser(batch).float()).loss
    assert float(loss.detach()) == pytest.approx(causal_nats(first / "model", tokens), abs=1e-5)

    # Continued with whole rows masked, and the same read-out; from scratch is worse after as many steps.
    whole = {"masking": IndependentMasking(mask=ExactCount()), **settings}
    second = trainer("masked", model=MaskedDiffusionLM.from_pretrained(first / "model"), **whole)
    scratch = trainer("scratch", model=llama(shifted=True), **whole)
    assert second.model.shifted
    losses = []
    for run in (second, scratch):
        lines = read_metrics(run.train().parent.parent)
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert sum(losses[0][:20]) < sum(losses[1][:20])
    assert losses[0][-1] < 1
    assert MaskedDiffusionLM.from_pretrained(sorted(second.checkpoints.iterdir())[-1] / "model").shifted


def test_a_curriculum_from_autoregression_to_whole_rows_in_one_run(trainer, llama, short_rows):
    masking = Blockwise(IndependentMasking(mask=ExactCount()), ((0, 1), (20, 2), (30, 6)))
    run = trainer(model=llama(shifted=True), masking=masking, dataset=short_rows, learning_rate=0.01, steps=40)
    lines = [line for line in read_metrics(run.train().parent.parent) if line["kind"] == "train"]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(line["masked_share"] == pytest.approx(5 / 6) for line in lines[:20])
    assert any(line["masked_share"] < 0.7 for line in lines[30:])


def test_a_library_model_goes_on_with_the_shift_it_was_trained_with(llama, short_rows):
    torch.manual_seed(0)
    library = AutoModelForCausalLM.from_config(llama().config)
    model = MaskedDiffusionLM.from_hf(library, MASK, shifted=True)
    batch = Blockwise(IndependentMasking(mask=ExactCount()), 1).start(RowStream(short_rows), 4).draw()
    model(batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_first_position_to_mask_is_refused_before_training(trainer, llama):
    rows = Dataset.from_dict({"tokens": [[1, 2, 3]] * 8, "maskable": [[True] * 3] * 8})
    with pytest.raises(ValueError, match="maskable first position"):
        trainer(model=llama(shifted=True), masking=MASKINGS["independent"], dataset=rows)


def test_rows_of_one_rank_without_a_mask_still_run(llama, masked_batch):
    model = llama()
    empty = masked_batch([[1, 2, 3, 4]], [[False] * 4])
    block = torch.tensor([[0, 0, 1, 1]])
    output = model(type(empty)(empty.clean, empty.masked, None, None, block))
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())

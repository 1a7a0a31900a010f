"""Losses and gradients that are not finite: what a run says of them, and that its weights take none of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from unmask import PPOTS, ExactCount, IndependentMasking, ProgressiveUnmasking
from unmask.store.checkpoint import newest

LEARN = {
    "puma": ProgressiveUnmasking(stages=4),
    "puma by no score": ProgressiveUnmasking(stages=4, policy="random"),
    "puma fast-forward": ProgressiveUnmasking(stages=4, policy="margin", threshold=0.9),
    "P-POTS online": IndependentMasking(PPOTS(2, grid=4, online=True), ExactCount()),
}


def _poisoned(rows: Dataset, build, trainer, step: int, **settings):
    """A run in which the input embedding of token 9 breaks after a step; only row 5 holds one, and shows it."""
    tokens = rows["tokens"][:]
    tokens[5] = [9, *tokens[5][1:]]
    rows = Dataset.from_dict({"tokens": tokens, "maskable": rows["maskable"][:]})
    model = build(tie_word_embeddings=False)
    calls = iter(range(100))

    def evaluate(model, last):
        if next(calls) == step:
            with torch.no_grad():
                model.backbone.wte.weight[9] = torch.nan
        return {}

    return trainer(model=model, dataset=rows, evaluate=evaluate, evaluate_every=1, steps=12, **settings)


def test_loss_that_is_not_finite_stops_with_step_rows_and_last_good_checkpoint(
    short_rows, build, trainer, weights_in
):
    run = _poisoned(short_rows, build, trainer, step=5, checkpoint_every=2)
    with pytest.raises(FloatingPointError) as error:
        run.train()
    good = run.checkpoints / "step-00000004"
    assert "step 5: the loss is nan" in str(error.value)
    assert "with a bad loss: [5]." in str(error.value)
    assert "is first not finite is the weight backbone.wte.weight" in str(error.value)
    assert "learning_rate" not in str(error.value)
    assert str(good) in str(error.value)
    assert newest(run.checkpoints) == good
    assert all(tensor.isfinite().all() for tensor in weights_in(good).values())
    healthy = [p for n, p in run.model.named_parameters() if "wte" not in n]
    assert all(p.isfinite().all() for p in healthy)  # the bad gradient was not applied


@pytest.mark.parametrize("kind", ["fused", "plain", "another"])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_noticed_a_step_later_at_most(
    short_rows, build, trainer, kind
):
    """Whether the device decides (fused) or the host, which has to know the norm first."""
    makers = {
        "fused": None,
        "plain": lambda groups: torch.optim.AdamW(groups, foreach=True),
        "another": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    }
    run = _poisoned(short_rows, build, trainer, step=0, optimizer=makers[kind])  # broken before the first step
    run.config = replace(run.config, evaluate_every=None)
    with pytest.raises(FloatingPointError, match=r"step (\d+): the loss is nan") as error:
        run.train()
    assert run.step - int(str(error.value).split(":")[0].split()[1]) in (1, 2)
    assert newest(run.checkpoints) is None
    assert all(p.isfinite().all() for n, p in run.model.named_parameters() if "wte" not in n)


@pytest.mark.parametrize("masking", LEARN.values(), ids=LEARN)
def test_a_process_that_learns_from_the_forward_ends_with_the_same_words_at_once(short_rows, build, trainer, masking):
    run = _poisoned(short_rows, build, trainer, step=1, checkpoint_every=1, masking=masking)
    with pytest.raises(FloatingPointError) as error:
        run.train()
    assert f"step {run.step - 1}: the loss is nan" in str(error.value)
    assert "with a bad loss: [5]." in str(error.value)
    assert str(newest(run.checkpoints)) in str(error.value)
    assert newest(run.checkpoints).name == f"step-{run.step - 1:08d}"
    assert "is first not finite is the weight backbone.wte.weight" in str(error.value)


def test_all_ranks_end_with_these_words_where_one_rank_has_the_row(
    short_rows, build, trainer, forked_ranks, tmp_path
):
    def work(rank):
        with pytest.raises(FloatingPointError) as error:
            _poisoned(short_rows, build, trainer, step=0, masking=LEARN["puma"]).train()
        (tmp_path / f"said-{rank}").write_text(str(error.value))

    assert forked_ranks(work) == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert all(text.startswith("step 0: the loss is nan") for text in said)
    assert sum("with a bad loss: [5]." in text for text in said) == 1


def test_loss_that_is_not_finite_before_any_checkpoint_says_so(short_rows, build, trainer):
    with pytest.raises(FloatingPointError, match=r"step 1: .*checkpoint is none: none was written yet"):
        _poisoned(short_rows, build, trainer, step=1).train()


def test_a_module_that_leaves_the_finite_numbers_is_named(short_rows, build, trainer):
    run = trainer(model=build(), dataset=short_rows, steps=1)
    norm = run.model.backbone.ln_f
    norm.register_forward_hook(lambda _, __, states: states / torch.zeros_like(states))
    with pytest.raises(FloatingPointError, match=r"is the output of backbone\.ln_f:"):
        run.train()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_what_overflows_in_the_runs_precision_alone_is_found_there(short_rows, build, trainer, precision):
    """The forward that looks for the source runs in that precision too."""
    run = trainer(model=build(), dataset=short_rows, steps=40, precision=precision)
    with torch.no_grad():
        run.model.backbone.h[0].mlp.c_fc.weight.mul_(3e6)
    if precision == "fp32":
        run.train()
        return
    with pytest.raises(FloatingPointError, match=r"What is first not finite is the output of backbone\.h\.0\.mlp"):
        run.train()

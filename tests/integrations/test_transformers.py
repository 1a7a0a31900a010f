"""transformers.Trainer with our processes trains what our own trainer trains, interrupted or not, split or not."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from unmask import (
    ELBO,
    PPOTS,
    Bell,
    Bernoulli,
    IndependentMasking,
    LikelihoodConfig,
    ProgressiveUnmasking,
    RowMean,
    Trainer,
    TrainingConfig,
)
from unmask.data.sudoku import MASK_TOKEN, load_sudoku
from unmask.evaluation.likelihood import likelihood
from unmask.integrations import MaskedDiffusionTrainer
from unmask.processes.refit import fitted_time_of
from unmask.recipes import SudokuModel
from unmask.store.checkpoint import load_state

CASES = {
    "puma": (ProgressiveUnmasking(stages=4, threshold=0.15, pool="batch"), RowMean()),
    "pool": (ProgressiveUnmasking(stages=4, threshold=0.15), RowMean()),
    "bell": (IndependentMasking(Bell(), Bernoulli(), "stratified"), ELBO()),
    "P-POTS": (IndependentMasking(PPOTS(3, grid=4, rows=2, masks=1)), ELBO()),
}
STEPS, BATCH, RATE = 6, 8, 1e-2


def rows(split: str = "train", limit: int = 40) -> Dataset:
    return load_sudoku(split, limit=limit)


def model():
    torch.manual_seed(0)
    return SudokuModel(layers=1, width=16, heads=2).build().double()


def theirs(out, case: str, accumulate: int = 1, **settings) -> MaskedDiffusionTrainer:
    masking, objective = CASES[case]
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=BATCH // accumulate,
        gradient_accumulation_steps=accumulate,
        **{
            "max_steps": STEPS,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.01,
            "adam_beta2": 0.98,
            "optim": "adamw_torch_fused",
            "seed": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        },
    )
    apart = {"eval_dataset": rows("test", 5), "held_out": rows("test", 5)}
    return MaskedDiffusionTrainer(
        model(), arguments, masking=masking, objective=objective, train_dataset=rows(), **apart
    )


def curve(trainer: MaskedDiffusionTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("case", ["puma", "pool", "bell"])  # a fit of P-POTS turns a rounding into 1e-4
def test_loss_curve_and_weights_are_those_of_our_own_trainer(case, tmp_path):
    masking, objective = CASES[case]
    config = TrainingConfig(
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=RATE,
        schedule="constant",
        warmup_steps=0,
        precision="fp32",
        threads=1,
        tracker="none",
        log_every=1,
    )
    ours = Trainer(model(), masking, rows(), objective, config, out=tmp_path / "ours", held_out=rows("test", 5))
    ours.train()
    lines = (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    trainer = theirs(tmp_path / "theirs", case)
    trainer.train()
    assert len(losses) == STEPS
    assert curve(trainer) == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(weights(trainer), weights(ours), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["puma", "bell"])
def test_gradient_accumulation_changes_nothing(case, tmp_path):
    runs = [theirs(tmp_path, case, accumulate) for accumulate in (1, 2)]
    for run in runs:
        run.train()
        assert curve(run) == pytest.approx(curve(runs[0]), abs=1e-6)
        torch.testing.assert_close(weights(run), weights(runs[0]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("masking", [ProgressiveUnmasking(stages=2, pool=BATCH), IndependentMasking()], ids=repr)
def test_a_long_row_is_paid_for_by_its_own_forwards_alone(masking, accumulate, tmp_path, build):
    """One row of 60 tokens among rows of 10: the others' forwards are no wider for it, also while a pool holds it."""
    lengths = [60] + [10] * 11
    some = Dataset.from_dict({"tokens": [[1] * n for n in lengths], "maskable": [[True] * n for n in lengths]})
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=24,
        per_device_train_batch_size=2 // accumulate,
        gradient_accumulation_steps=accumulate,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MaskedDiffusionTrainer(build(), arguments, masking=masking, train_dataset=some)
    widths, longest, plain = [], [], trainer.process.draw

    def draw():
        batch = plain()
        longest.append(int(batch.clean.attention.sum(1).max()))
        return batch

    trainer.process.draw = draw
    trainer.model.backbone.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    trainer.train()
    assert max(longest) == 60 > 10 == min(longest)
    assert [max(widths[i : i + accumulate]) for i in range(0, len(widths), accumulate)] == longest
    assert widths.count(60) == longest.count(60)


@pytest.mark.parametrize("case", ["puma", "pool", "P-POTS"])
def test_resumed_run_is_the_uninterrupted_one(case, tmp_path):
    whole = theirs(tmp_path / "whole", case, accumulate=2)
    whole.train()
    first = theirs(tmp_path / "cut", case, accumulate=2, save_strategy="steps", save_steps=4)
    first.train()  # to the end: what lies beyond step 4 must not matter
    again = theirs(tmp_path / "cut", case, accumulate=2)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert curve(again) == curve(whole)
    assert torch.equal(weights(again), weights(whole))
    assert again.state.epoch == 1
    assert (case == "P-POTS") == (getattr(fitted_time_of(again.process), "fit", None) is not None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_ends_a_run_of_chains_naming_the_rows(accumulate, tmp_path):
    trainer = theirs(tmp_path, "puma", accumulate)
    with torch.no_grad():
        trainer.model.head.output.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[\d+, .*\] of the data set"):
        trainer.train()
    assert trainer.process.step == 0


def test_chains_advance_and_lie_in_the_checkpoint(tmp_path):
    trainer = theirs(tmp_path, "puma", save_strategy="steps", save_steps=1)
    trainer.train()
    states = [load_state(tmp_path / f"checkpoint-{step}" / "masking-0") for step in (1, 4)]
    early, late = (state["pool"]["revealed"] for state in states)
    assert early.shape == late.shape
    assert not torch.equal(early, late)
    assert states[1]["rows"]["position"] > BATCH  # chains ended, new rows came
    assert [state["step"] for state in states] == [1, 4]
    assert late.any(1).any()


def test_checkpoint_without_a_process_is_refused(tmp_path):
    theirs(tmp_path, "puma", save_strategy="steps", save_steps=3).train()
    (tmp_path / "checkpoint-3" / "masking-0.json").unlink()
    with pytest.raises(ValueError, match=r"holds no state of this process's rows"):
        theirs(tmp_path, "puma").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_checkpoint_opens_without_us_and_the_best_one_comes_back(tmp_path):
    trainer = theirs(
        tmp_path,
        "bell",
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=3.0,  # far too large: the first checkpoint's loss is the greatest
        greater_is_better=True,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    opened = AutoModelForCausalLM.from_pretrained(best, dtype="auto")
    own = trainer.model.hugging_face.state_dict()
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_eval_loss_is_the_likelihood(tmp_path):
    trainer = theirs(tmp_path, "puma")
    found = trainer.evaluate()["eval_loss"]
    expected = likelihood(trainer.model.eval(), rows("test", 5), LikelihoodConfig()).nats_per_token.value
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("case", "steps"), [("pool", 39), ("pool", 40), ("puma", 2), ("bell", 2)])
def test_a_run_that_is_too_short_for_its_pool_is_told_so(case, steps, tmp_path):
    """Four stages of a pool of five batches take twenty steps, and chains should move through twice."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        theirs(tmp_path, case, max_steps=steps)
    told = [str(warning.message) for warning in found if "a chain of PUMA" in str(warning.message)]
    assert len(told) == (case == "pool" and steps < 40)
    assert all("moves on every 5 steps, so 4 stages take 20 steps, and the run has 39" in text for text in told)


@pytest.mark.parametrize(
    ("kind", "warmup", "told"),
    [("linear", 7, 1), ("cosine", 6, 0), ("linear", 0.5, 0), ("constant_with_warmup", 60, 1), ("constant", 60, 0)],
)
def test_so_is_one_that_ends_before_its_learning_rate_is_up(kind, warmup, told, tmp_path):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer = theirs(tmp_path, "bell", lr_scheduler_type=kind, warmup_steps=warmup)
    texts = [str(warning.message) for warning in found if "learning rate rises" in str(warning.message)]
    assert len(texts) == told
    trainer.create_optimizer_and_scheduler(STEPS)
    rates = []
    for _ in range(STEPS):
        rates += trainer.lr_scheduler.get_last_lr()[:1]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    if told:
        assert max(rates) < RATE
        assert f"ends at {rates[-1]:.2g} of {RATE:g}" in texts[0]


def test_what_cannot_train_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        theirs(tmp_path, "bell", max_steps=-1)
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
    with pytest.raises(ValueError, match="ELBO cannot use"):
        MaskedDiffusionTrainer(model(), arguments, masking=CASES["puma"][0], objective=ELBO(), train_dataset=rows())
    bad = Dataset.from_dict({"tokens": [[1, MASK_TOKEN]], "maskable": [[True, True]]})
    good = {"train_dataset": rows(), "eval_dataset": rows("test", 5), "held_out": rows("test", 5)}
    masking, objective = CASES["P-POTS"]
    for name in good:
        apart = good | {name: bad}
        with pytest.raises(ValueError, match=f"of {name} already holds the mask token"):
            MaskedDiffusionTrainer(model(), arguments, masking=masking, objective=objective, **apart)

"""The training loop: gradients, schedule, averages, evaluation, and what it refuses."""

from __future__ import annotations

import io
import re
import warnings
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import pad
from transformers import MixtralConfig

from unmask import (
    ELBO,
    PPOTS,
    Bernoulli,
    Beta,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
    TrainingConfig,
)
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE
from unmask.training import progress, read_metrics

SPARSE = IndependentMasking(time=Beta(a=1.0, b=80.0), mask=Bernoulli())  # many rows without a mask
STANDARD = IndependentMasking(mask=ExactCount())


def _close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("masking", "objective"),
    [
        (STANDARD, RowMean()),
        (SPARSE, RowMean()),
        (SPARSE, MaskedMean()),
        (SPARSE, ELBO()),
        (ProgressiveUnmasking(stages=8, threshold=0.2), RowMean()),
    ],
    ids=["exact count", "sparse row mean", "sparse masked mean", "sparse ELBO", "puma"],
)
def test_micro_batches_do_not_change_the_weights(trainer, build, weights_in, masking, objective):
    """In float64, where no reveal hangs on rounding. Rows without a mask occur, micro-batches without one too."""
    found, masked = {}, {}
    for size in (None, 1, 3):
        run = trainer(
            f"micro-{size}", model=build(double=True), masking=masking, objective=objective, micro_batch_size=size
        )
        found[size] = weights_in(run.train())
        masked[size] = [
            (line["masked_share"], line["loss"], line["grad_norm"], *(x or 0 for x in line["by_rate"]["gradient"]))
            for line in read_metrics(run.out, "train")
        ]
    assert next(iter(found[1].values())).dtype == torch.float64
    if masking is SPARSE:
        probe = masking.start(run.process.rows, 8)
        assert any(not draw.masked.any(1).all() for draw in (probe.draw() for _ in range(6)))
    for size in (1, 3):
        _close(found[size], found[None], 1e-8)
        assert masked[size] == [pytest.approx(line, rel=1e-6) for line in masked[None]]


def test_layers_that_are_run_again_in_the_backward_train_the_same_weights(trainer, build, weights_in):
    found = []
    for again in (False, True):
        run = trainer(f"run-{again}", model=build(dropout=0.2, double=True), activation_checkpointing=again, steps=3)
        found.append(weights_in(run.train()))
        assert run.model.is_activation_checkpointing == again
    _close(*found, 1e-8)


@pytest.mark.parametrize("objective", [RowMean(), MaskedMean(), ELBO()])
def test_batch_without_any_mask_trains_on(trainer, tmp_path, objective):
    """One row a step, at a rate where most rows get no mask: legal, and no reason to stop or to warn."""
    masking = IndependentMasking(time=Beta(a=1.0, b=1000.0), mask=Bernoulli())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = trainer(masking=masking, objective=objective, batch_size=1, steps=12).train()
    lines = read_metrics(tmp_path / "run", "train")
    empty = [line for line in lines if line["masked_share"] == 0]
    assert empty
    assert all(line["loss"] == 0 and line["grad_norm"] == 0 for line in empty)
    assert last.name == "step-00000012"


def test_tokens_and_epochs_count_what_was_trained_on(trainer, tmp_path):
    trainer(steps=6, batch_size=8).train()
    for line in read_metrics(tmp_path / "run", "train"):
        assert line["tokens"] == line["step"] * 8 * 81
        assert line["epoch"] == pytest.approx(line["step"] * 8 / 40)


def test_loss_falls_and_order_of_magnitude_is_nats(trainer, tmp_path):
    trainer(steps=60, learning_rate=3e-3, warmup_steps=5).train()
    losses = [line["loss"] for line in read_metrics(tmp_path / "run", "train")]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(VOCAB_SIZE - 1.0)).item(), abs=0.1)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.05


def test_logged_gradient_norm_is_that_before_clipping(trainer, tmp_path):
    for name, clip in (("tight", 1e-3), ("loose", 1e3)):
        trainer(name, clip_norm=clip, steps=1).train()
    (tight,), (loose,) = (read_metrics(tmp_path / name, "train") for name in ("tight", "loose"))
    assert tight["grad_norm"] == loose["grad_norm"] > 1e-2


def test_gradients_are_clipped_to_the_norm(trainer, tmp_path):
    """AdamW's first moment after one step is the clipped gradient times 1 - beta1."""
    norms = {}
    for name, clip in (("tight", 1e-3), ("loose", 1e3)):
        run = trainer(name, clip_norm=clip, steps=1)
        run.train()
        norms[name] = torch.stack([state["exp_avg"].norm() / 0.1 for state in run.optimizer.state.values()]).norm()
    assert norms["tight"].item() == pytest.approx(1e-3, rel=1e-3)
    assert norms["loose"].item() == pytest.approx(read_metrics(tmp_path / "loose", "train")[0]["grad_norm"], rel=1e-4)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [config.learning_rate_at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_learning_rate_of_other_schedules():
    constant = TrainingConfig(steps=100, warmup_steps=0, learning_rate=0.5, schedule="constant")
    assert {constant.learning_rate_at(step) for step in range(100)} == {0.5}
    all_warmup = TrainingConfig(steps=5, warmup_steps=50, learning_rate=1.0)
    assert all_warmup.learning_rate_at(4) == pytest.approx(0.1)


def test_logged_learning_rate_is_the_schedules_and_is_applied(trainer, build, tmp_path):
    before = {name: p.detach().clone() for name, p in build().named_parameters()}
    run = trainer(steps=1, warmup_steps=4, learning_rate=0.01, weight_decay=0.0)
    run.train()
    assert read_metrics(tmp_path / "run", "train")[0]["learning_rate"] == 0.01 / 4
    # AdamW's first step moves each weight by the learning rate, whatever its gradient.
    moved = torch.cat([(p.detach() - before[name]).abs().flatten() for name, p in run.model.named_parameters()])
    assert moved.max().item() == pytest.approx(0.01 / 4, rel=1e-3)
    assert moved[moved > 0].median().item() == pytest.approx(0.01 / 4, rel=1e-2)


def test_logged_learning_rates_follow_the_whole_schedule(trainer, tmp_path):
    run = trainer(steps=8)
    run.train()
    logged = [line["learning_rate"] for line in read_metrics(tmp_path / "run", "train")]
    assert logged == [run.config.learning_rate_at(step) for step in range(8)]


def test_weight_decay_spares_vectors(trainer):
    run = trainer()
    decays = {tuple(p.dim() for p in group["params"]): group["weight_decay"] for group in run.optimizer.param_groups}
    for dims, decay in decays.items():
        assert (decay > 0) == (min(dims) >= 2)
        assert (max(dims) < 2) == (decay == 0)


def test_average_follows_its_formula_through_a_run(trainer, build, weights_in):
    run = trainer(steps=6, ema_decay=0.15, checkpoint_every=1, keep_checkpoints=9, learning_rate=0.1)
    names = run.model._container_names()
    average = {names[name]: p.detach().clone() for name, p in build().state_dict().items()}
    run.train()
    for step in range(6):
        folder = run.checkpoints / f"step-{step + 1:08d}"
        weights, saved = weights_in(folder), weights_in(folder, "ema")
        decay = min(0.15, (1 + step) / (10 + step))
        for name in saved:
            average[name] = decay * average[name] + (1 - decay) * weights[name]
        _close(saved, {name: average[name] for name in saved}, 1e-6)
        assert any(not torch.allclose(saved[name], weights[name]) for name in saved)


def test_evaluation_sees_averaged_weights_in_evaluation_mode_and_gives_them_back(trainer, build, weights_in):
    seen = []

    def evaluate(model, last):
        torch.rand(7)  # an evaluation may draw random numbers
        seen.append(({n: p.clone() for n, p in model.state_dict().items()}, model.training, last))
        return {}

    settings = {"ema_decay": 0.5, "checkpoint_every": 1, "keep_checkpoints": 9, "learning_rate": 0.1}
    run = trainer("watched", model=build(dropout=0.2), evaluate=evaluate, evaluate_every=2, **settings)
    watched = run.train()
    names = run.model._container_names()
    for (weights, training, last), step in zip(seen[1:], (2, 4, 6), strict=True):
        assert not training
        assert last == (step == 6)
        saved = weights_in(run.checkpoints / f"step-{step:08d}", "ema")
        _close({names[n]: weights[n] for n in weights if names[n] in saved}, saved, 0)
    assert run.model.training
    plain = trainer("plain", model=build(dropout=0.2), **settings).train()
    for which in ("model", "ema"):
        _close(weights_in(watched, which), weights_in(plain, which), 0)


def test_evaluations_are_at_the_start_every_so_often_and_at_the_end(trainer, tmp_path):
    trainer(evaluate=lambda model, last: {"solved": 0.5, "last": last}, evaluate_every=4).train()
    lines = read_metrics(tmp_path / "run", "evaluation")
    assert [(line["step"], line["last"]) for line in lines] == [(0, False), (4, False), (6, True)]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, r'must return a dict of figures, as \{"loss": 1\.5\}, got None'),
        (1.5, "must return a dict of figures.*got 1.5"),
        ({"loss": torch.tensor(1.5)}, r"figure 'loss' cannot be logged, give float\(\.\.\.\) of it: .*Tensor"),
        ({"by rate": {"low": torch.ones(2)}}, "figure 'by rate' cannot be logged"),
        ({"loss": 1.5, "tokens": 3, "kind": 1}, "evaluate gives kind, tokens, as the run's own figures are called"),
    ],
    ids=["none", "number", "tensor", "nested", "taken"],
)
def test_what_an_evaluation_of_ones_own_gives_is_looked_at(trainer, results, message):
    """Each ended in an error of the log's own code."""
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(evaluate=lambda model, last: results).train()


def test_a_line_tells_the_mean_loss_since_the_last_one(trainer):
    each, some = trainer("each", steps=6), trainer("some", steps=6, log_every=3)
    each.train()
    some.train()
    losses = [line["loss"] for line in read_metrics(each.out, "train")]
    lines = {line["step"]: line["loss_mean"] for line in read_metrics(some.out, "train")}
    assert lines[3] == pytest.approx(sum(losses[1:3]) / 2)
    assert lines[6] == pytest.approx(sum(losses[3:]) / 3)


def test_the_routers_loss_has_a_figure_of_its_own(trainer):
    logged = []
    for coefficient in (0.5, 1.0):
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
            num_experts_per_tok=1,
            output_router_logits=True,
            router_aux_loss_coef=coefficient,
        )
        model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
        run = trainer(f"of-{coefficient}", model=model, steps=1, micro_batch_size=4)
        run.train()
        logged.append(read_metrics(run.out, "train")[0])
    assert logged[1]["balance"] == pytest.approx(2 * logged[0]["balance"])
    assert logged[0]["balance"] >= 0.5 - 1e-6  # the coefficient, where experts are used evenly
    assert logged[0]["loss"] == pytest.approx(logged[1]["loss"])


def test_without_a_terminal_lines_tell_how_far_it_is(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=100)
    with progress.Display(console) as display:
        run = progress.TrainingProgress(display, "arm", 9)
        run.step(1, loss=2.5)
        monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
        run.step(2, loss=1.5)
        run.evaluated(3, solved=0.5)
        run.evaluated(9, solved=0.5)
    lines = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        *("arm step 1/9 loss 2.500", "arm step 3/9 loss 1.500", "arm step 9/9 loss 1.500")
    ]
    assert [bool(re.search(r"steps/s, about \d+ s left$", line)) for line in lines] == [True, True, False]


def test_start_far_above_log_v_warns(trainer, build):
    with pytest.warns(UserWarning, match=r"well above log V = 2\.30"):
        trainer(model=build(std=1.0), steps=1).train()


def test_start_far_below_log_v_warns(trainer):
    same = Dataset.from_dict({"tokens": [[3] * 6] * 8, "maskable": [[True] * 6] * 8})
    first = trainer("first", dataset=same, steps=60, learning_rate=0.03)
    first.train()
    with pytest.warns(UserWarning, match=r"well below log V = 2\.30"):
        trainer("second", model=first.model, dataset=same, steps=1).train()


@pytest.mark.parametrize("masking", [STANDARD, ProgressiveUnmasking(stages=4)], ids=["standard", "puma"])
def test_healthy_start_gives_no_warning(trainer, masking):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(masking=masking, steps=1).train()


def test_tensorboard_file_holds_the_logged_numbers(trainer, tmp_path):
    trainer(tracker="tensorboard", steps=4, evaluate=lambda model, last: {"solved": 0.25}).train()
    (file,) = tmp_path.rglob("*tfevents*")
    events = EventAccumulator(str(file.parent)).Reload()
    logged = read_metrics(tmp_path / "run", "train")
    for name in ("loss", "grad_norm", "learning_rate"):
        scalars = events.Scalars(f"train/{name}")
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        assert [s.value for s in scalars] == pytest.approx([line[name] for line in logged], rel=1e-5)
    assert [(s.step, s.value) for s in events.Scalars("evaluation/solved")] == [(0, 0.25), (4, 0.25)]


def test_unknown_tracker_is_named_before_training(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"tracker 'tensorbord': .*tensorboard"):
        trainer(tracker="tensorbord")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_tracker_that_is_not_installed_is_named_before_training(trainer):
    """The libraries of these trackers are none of ours; at least one is missing wherever this runs."""
    from accelerate.tracking import get_available_trackers

    missing = next(
        n for n in ("comet_ml", "aim", "clearml", "dvclive") if n not in map(str, get_available_trackers())
    )
    with pytest.raises(ValueError, match=f"tracker '{missing}' is not installed"):
        trainer(tracker=missing)


def test_elbo_with_puma_is_refused_at_construction(trainer, tmp_path):
    with pytest.raises(ValueError, match="ELBO cannot use ProgressiveUnmasking"):
        trainer(masking=ProgressiveUnmasking(), objective=ELBO())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("column", "row", "message"),
    [
        ("tokens", [1, 2, MASK_TOKEN, 4, 5, 6], "row 6 of the data set already holds the mask token 10"),
        ("tokens", [1, 2, VOCAB_SIZE, 4, 5, 6], "row 6 of the data set holds a token outside the vocabulary"),
        ("maskable", [False] * 6, "row 6 of the data set has no maskable position"),
    ],
)
def test_rows_that_could_not_train_are_refused_at_construction(trainer, short_rows, tmp_path, column, row, message):
    columns = {name: short_rows[name][:] for name in ("tokens", "maskable")}
    columns[column][6] = row
    with pytest.raises(ValueError, match=message):
        trainer(dataset=Dataset.from_dict(columns))
    assert not (tmp_path / "run").exists()


def test_same_seed_gives_the_same_run_and_another_one_does_not(trainer, state_of):
    first, again, other = (trainer(name, seed=seed).train() for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert state_of(first) == state_of(again)
    assert state_of(first)["model/model.safetensors"] != state_of(other)["model/model.safetensors"]


@pytest.mark.parametrize(
    ("masking", "objective"),
    [(STANDARD, RowMean()), (SPARSE, ELBO()), (ProgressiveUnmasking(stages=4, threshold=0.2), RowMean())],
    ids=["exact count", "sparse ELBO", "puma"],
)
def test_padding_is_not_computed_and_changes_nothing(trainer, build, weights_in, masking, objective):
    """Rows of unequal length, in float64, in any micro-batch, against a model that reads every row to position 40."""
    lengths = [4, 17, 9, 30, 6, 23, 12, 5]
    tokens = [[(3 * i + j) % 8 for j in range(length)] for i, length in enumerate(lengths)]
    rows = Dataset.from_dict({"tokens": tokens, "maskable": [[j > 0 for j in range(n)] for n in lengths]})
    found, computed = {}, {}
    for size in (None, 3, 1):
        run = trainer(
            f"cut-{size}",
            model=build(double=True),
            masking=masking,
            objective=objective,
            dataset=rows,
            micro_batch_size=size,
        )
        seen: list[int] = []
        run.model.backbone.register_forward_pre_hook(
            lambda module, args, given, seen=seen: seen.append(given["input_ids"].numel()), with_kwargs=True
        )
        found[size], computed[size] = weights_in(run.train()), sum(seen)
        lines = read_metrics(run.out, "train")
        found[size, "log"] = [(line["loss"], line["nll"], line["masked_share"]) for line in lines]
    whole = trainer("whole", model=build(double=True), masking=masking, objective=objective, dataset=rows)
    forward = whole.wrapped.forward

    def uncut(prepared, needs, objective):
        batch, weights = prepared.batch, prepared.spread(prepared.weight)
        length = batch.clean.length
        assert length == weights.shape[1] == batch.clean.attention.sum(1).max()
        wide = batch.map(lambda x: pad(x, (0, 40 - length)) if x.dim() == 2 and x.shape[1] == length else x)
        output = forward(wide, pad(weights, (0, 40 - length)), needs, objective)
        return output.map(lambda x: x[:, :length] if x.dim() == 2 else x)

    whole.wrapped.forward = uncut
    weights = weights_in(whole.train())
    for size in (None, 3, 1):
        _close(found[size], weights, 1e-9)
        assert found[size, "log"] == [pytest.approx(line, rel=1e-9) for line in found[None, "log"]]
    if masking is not SPARSE:  # there, micro-batches without a mask run a row all the same
        assert computed[1] < computed[3] < computed[None]


LEARNS = IndependentMasking(PPOTS(refit_every=2, grid=4, rows=3, masks=2, moment="gradient"), ExactCount())


def test_fits_of_the_time_distribution_are_logged_under_the_steps_they_served(trainer, tmp_path):
    trainer(masking=LEARNS).train()
    fits = read_metrics(tmp_path / "run", "time")
    assert [line["step"] for line in fits] == [3, 5]
    assert all({"fit", "kl", "t", "mean", "variance", "density"} <= set(line) for line in fits)

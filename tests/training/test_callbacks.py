"""What a user hands to the trainer: callbacks, an optimiser, a learning rate."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from transformers import get_scheduler

from unmask import TrainingConfig
from unmask.training import BestCheckpoint, Callback, EarlyStopping, read_metrics

LOSSES = [9.0, 5.0, 3.0, 4.0, 3.5, 3.2, 1.0, 1.0, 1.0, 1.0, 1.0]


def _of_step(run, losses=LOSSES):
    """An evaluation whose loss is a given function of the trainer's step."""
    return lambda model, last: {"loss": losses[run[0].step]}


def _trainer(make, out, callbacks, **settings):
    run = []
    run.append(make(out, evaluate=_of_step(run), evaluate_every=1, callbacks=callbacks, **settings))
    return run[0]


def test_callbacks_are_told_of_steps_evaluations_and_checkpoints(trainer, tmp_path):
    told = []

    class Told(Callback):
        def step(self, step, metrics):
            told.append(("step", step, math.isfinite(metrics["loss"])))

        def evaluation(self, step, results):
            told.append(("evaluation", step, results["loss"]))

        def checkpoint(self, step, folder):
            told.append(("checkpoint", step, (folder / "manifest.json").is_file()))

    _trainer(trainer, "run", [Told()], steps=2, checkpoint_every=1).train()
    assert told == [
        ("evaluation", 0, 9.0),
        *(("step", 1, True), ("evaluation", 1, 5.0), ("checkpoint", 1, True)),
        *(("step", 2, True), ("evaluation", 2, 3.0), ("checkpoint", 2, True)),
    ]


@pytest.mark.parametrize("rises", [False, True])
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_an_improvement_is_more_than_the_least(least, rises):
    """A figure that stands still, or moves by just the least, is none."""
    better = 1 if rises else -1
    stopping = EarlyStopping("loss", patience=2, least=least, rises=rises)
    for value in (8.0, 8.0 + better * least, 8.0 + better * (least + 0.25), 8.0 + better * (2 * least + 0.25)):
        stopping.evaluation(0, {"loss": value})
    assert (stopping.best, stopping.waited) == (8.0 + better * (least + 0.25), 1)


def test_run_without_improvement_ends_early_and_stays_ended(trainer, tmp_path):
    last = _trainer(trainer, "run", [EarlyStopping(patience=3)], steps=10).train()
    assert last.name == "step-00000005"  # the best was at 2
    assert _trainer(trainer, "run", [EarlyStopping(patience=3)], steps=10).train(resume=True) == last
    assert max(line["step"] for line in read_metrics(tmp_path / "run")) == 5


@pytest.mark.parametrize("rises", [False, True])
@pytest.mark.parametrize(
    "figures", [[math.nan, 4.0, 5.0, 3.0], [math.inf, 4.0, math.nan, 3.0], [-math.inf, 2.0, 1.0]]
)
def test_the_best_figure_is_a_number_wherever_there_is_one(figures, rises):
    """An evaluation that overflows (early, or in fp16) is no better than any other."""
    best, early = BestCheckpoint(rises=rises), EarlyStopping(rises=rises, patience=len(figures))
    for step, figure in enumerate(figures, 1):
        best.evaluation(step, {"loss": figure})
        early.evaluation(step, {"loss": figure})
    wanted = (max if rises else min)(figure for figure in figures if math.isfinite(figure))
    assert best.best == early.best == wanted
    assert figures[best.keep - 1] == wanted


def test_a_run_whose_figures_are_no_numbers_ends_early_too():
    early = EarlyStopping(patience=2)
    for step in range(2):
        early.evaluation(step, {"loss": math.nan})
    assert early.stop == "loss has not been a number for 2 evaluations"


@pytest.mark.parametrize("at", [1, 3, 5])
def test_when_a_run_is_saved_does_not_decide_where_it_ends(trainer, state_of, at):
    """A save lets callbacks hear of the step at hand, which they hear of one step later otherwise."""

    class Ends(Callback):
        def step(self, step, metrics):
            self.stop = "enough" if step >= at else None

    ways = [
        {"checkpoint_minutes": 1e-9},
        {"checkpoint_minutes": 60},
        {"checkpoint_every": 1},
        {"checkpoint_every": 2},
    ]
    last = [trainer(str(i), callbacks=[Ends()], **way).train() for i, way in enumerate(ways)]
    assert {folder.name for folder in last} == {f"step-{at + 1:08d}"}
    assert all(state_of(folder) == state_of(last[0]) for folder in last)


@pytest.mark.parametrize("saved", [2, 3, 4])
def test_a_run_ends_where_it_would_have_ended_had_it_not_been_resumed(trainer, state_of, saved):
    """What a callback hears of a step while that is saved must not end the run a step earlier once it goes on."""

    class Ends(Callback):
        def step(self, step, metrics):
            self.stop = "enough" if step >= 3 else None

        def state_dict(self):
            return {"stop": self.stop}

        def load_state_dict(self, state):
            self.stop = state["stop"]

    settings = {"steps": 9, "checkpoint_every": 1, "keep_checkpoints": 9}
    last = trainer(callbacks=[Ends()], **settings).train()
    whole = state_of(last)
    for step in range(saved + 1, 5):
        shutil.rmtree(last.with_name(f"step-{step:08d}"))
    again = trainer(callbacks=[Ends()], **settings).train(resume=True)
    assert again == last
    assert state_of(again) == whole


def test_patience_survives_a_resume(trainer, stop_at):
    settings = {"steps": 10, "checkpoint_every": 1}
    with pytest.raises(stop_at.error):
        trainer(
            "cut", evaluate=_failing(stop_at, 5), evaluate_every=1, callbacks=[EarlyStopping(patience=3)], **settings
        ).train()
    again = [EarlyStopping(patience=3)]
    assert _trainer(trainer, "cut", again, **settings).train(resume=True).name == "step-00000005"
    assert again[0].waited == 3


def _failing(stop_at, count):
    ends, steps = stop_at(count), iter(range(count + 1))

    def evaluate(model, last):
        ends(model, last)
        return {"loss": LOSSES[next(steps)]}

    return evaluate


def test_small_improvements_do_not_count(trainer):
    assert _trainer(trainer, "run", [EarlyStopping(patience=1, least=2.5)], steps=9).train().name == "step-00000002"


def test_checkpoint_of_the_best_evaluation_is_kept(trainer, tmp_path):
    best = BestCheckpoint()
    _trainer(trainer, "run", [best], steps=6, checkpoint_every=1, keep_checkpoints=1).train()
    assert best.keep == 6
    best = BestCheckpoint("loss", rises=True)
    _trainer(trainer, "rising", [best], steps=6, checkpoint_every=1, keep_checkpoints=1).train()
    assert best.keep == 1
    assert sorted(p.name for p in (tmp_path / "rising" / "checkpoints").iterdir()) == [
        "step-00000001",
        "step-00000006",
    ]


def test_best_evaluation_is_saved_where_no_checkpoint_was_due(trainer, tmp_path):
    _trainer(trainer, "run", [BestCheckpoint()], steps=5).train()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002", "step-00000005"]


def test_a_figure_that_the_evaluation_does_not_give_is_named(trainer):
    with pytest.raises(ValueError, match="no figure 'los'; did you mean 'loss'"):
        _trainer(trainer, "run", [EarlyStopping("los")]).train()


def test_a_run_is_resumed_with_as_many_callbacks(trainer):
    trainer("run", steps=4).train()
    with pytest.raises(ValueError, match="0 callback"):
        trainer("run", steps=4, callbacks=[Callback()]).train(resume=True)


def _sgd(groups):
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def test_own_optimiser_and_rate_train_and_resume_bitwise(trainer, state_of, stop_at):
    given = {"optimizer": _sgd, "learning_rate": lambda step: 0.1 / (1 + step), "steps": 6, "checkpoint_every": 2}
    whole = trainer("whole", **given).train()
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(5), evaluate_every=1, **given).train()
    cut = trainer("cut", **given)
    assert state_of(cut.train(resume=True)) == state_of(whole)
    assert isinstance(cut.optimizer.optimizer, torch.optim.SGD)
    rates = [line["learning_rate"] for line in read_metrics(cut.out, "train")]
    assert rates == [0.1 / (1 + step) for step in range(6)]


def test_a_run_is_not_resumed_with_another_optimiser(trainer):
    trainer("run", optimizer=_sgd).train()
    with pytest.raises(ValueError, match=r"given.optimizer: _sgd -> None"):
        trainer("run").train(resume=True)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "warmup_stable_decay"])
def test_schedules_are_those_of_transformers_after_the_warm_up(name):
    """Theirs begins the warm-up at a rate of zero, in a step that is lost; ours does not."""
    decay = 20 if name == "warmup_stable_decay" else None
    config = TrainingConfig(steps=60, warmup_steps=10, schedule=name, decay_steps=decay, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    kind, own = ("constant_with_warmup" if name == "constant" else name), {"num_decay_steps": decay} if decay else {}
    theirs = get_scheduler(kind, optimizer, 10, 60, own)
    for step in range(60):
        if step >= 10:
            assert config.learning_rate_at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        theirs.step()
    assert [config.learning_rate_at(step) for step in range(10)] == [pytest.approx(0.05 * (i + 1)) for i in range(10)]


def test_schedules_end_at_the_final_rate():
    for name in ("cosine", "linear", "warmup_stable_decay"):
        config = TrainingConfig(steps=50, schedule=name, final_learning_rate=0.25, learning_rate=2.0, warmup_steps=5)
        assert config.learning_rate_at(50) == pytest.approx(0.5)

"""A run may be made longer where the learning rates of its steps stay what they were."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from unmask import TrainingConfig
from unmask.store import checkpoint


def _decay(schedule: str) -> int | None:
    return 2 if schedule == "warmup_stable_decay" else None


@pytest.mark.parametrize("schedule", ["constant", "warmup_stable_decay"])
def test_run_made_longer_is_the_longer_run(trainer, state_of, stop_at, schedule):
    settings = {"schedule": schedule, "decay_steps": _decay(schedule), "checkpoint_every": 1}
    whole = trainer("whole", steps=8, **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", steps=6, evaluate=stop_at(4), evaluate_every=1, **settings).train()  # 4 - 1 steps are saved
    assert state_of(trainer("cut", steps=8, **settings).train(resume=True)) == state_of(whole)


def test_finished_constant_run_goes_on(trainer, state_of):
    trainer("run", steps=4, schedule="constant").train()
    longer = trainer("run", steps=6, schedule="constant").train(resume=True)
    assert state_of(longer) == state_of(trainer("whole", steps=6, schedule="constant").train())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay"])
def test_decayed_run_is_not_made_longer_by_itself_but_anneals_anew_when_asked(trainer, schedule):
    settings = {"schedule": schedule, "decay_steps": _decay(schedule)}
    trainer("run", steps=4, **settings).train()
    with pytest.raises(ValueError, match=f"steps: 4 -> 6: under {schedule} the 4 steps.*--anneal-from 4"):
        trainer("run", steps=6, **settings).train(resume=True)
    longer = trainer("run", steps=7, anneal_from=4, **settings)
    assert longer.train(resume=True).name == "step-00000007"
    peak = longer.config.learning_rate
    assert [longer.config.learning_rate_at(step) for step in (4, 5)] == [peak / 2, peak]
    assert longer.train(resume=True).name == "step-00000007"  # and is the same run from now on


@pytest.mark.parametrize(("anneal_from", "steps"), [(2, 6), (0, 3), (5, 9)])
def test_annealing_anew_begins_where_the_run_is(trainer, anneal_from, steps):
    trainer("run", steps=4).train()
    with pytest.raises(ValueError, match=r"steps: 4 -> |anneal_from: 0 -> 5, and 4 steps"):
        trainer("run", steps=steps, anneal_from=anneal_from).train(resume=True)


def test_resumed_run_may_split_its_steps_otherwise(trainer, weights_in, stop_at, build):
    import torch

    settings = {"checkpoint_every": 1}
    whole = trainer("whole", model=build(double=True), **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", model=build(double=True), evaluate=stop_at(3), evaluate_every=1, **settings).train()
    cut = trainer("cut", model=build(double=True), micro_batch_size=3, **settings).train(resume=True)
    for name, tensor in weights_in(whole).items():
        torch.testing.assert_close(weights_in(cut)[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins_anneals_from_its_beginning(trainer, resume):
    """Below `anneal_from` there is no schedule: rates would rise from far below zero."""
    with pytest.raises(ValueError, match="anneal_from 2 is for a run that goes on after so many steps, and 0 are"):
        trainer("run", steps=4, anneal_from=2).train(resume=resume)


def _without_optimiser(last: Path) -> None:
    """As a study leaves its whole runs."""
    checkpoint.reduce(last, ("model",))


def _damaged(last: Path) -> None:
    (last / "optimizer.json").write_text("{}")


def _of_other_rows(last: Path) -> None:
    """A state that this run's stream does not take."""
    state = last / "rank-0.json"
    state.write_text(state.read_text().replace('"size": 40', '"size": 41'))
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"]["rank-0.json"]["sha256"] = checkpoint.sha256(state)
    del manifest["sha256"]
    (last / "manifest.json").write_text(checkpoint._signed(manifest))


@pytest.mark.filterwarnings("ignore:.*looking for an earlier one")
@pytest.mark.parametrize(
    ("changed", "longer", "message"),
    [
        (_without_optimiser, {"steps": 9}, "holds weights alone"),
        (_damaged, {"steps": 9, "anneal_from": 6}, "anneal_from 6 .* 3 are done"),
        (_of_other_rows, {"steps": 9}, "number of rows 41"),
    ],
)
def test_a_run_that_cannot_go_on_stays_what_it_was(trainer, tmp_path, changed, longer, message):
    """Its config.json is that of what is there; else one that was refused once would be another from then on."""
    settings = {"schedule": "constant", "checkpoint_every": 3}
    changed(trainer(**settings).train())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=message):
        trainer(**settings, **longer).train(resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_decay_that_would_begin_in_the_warm_up_begins_behind_it():
    config = TrainingConfig(steps=10, warmup_steps=6, schedule="warmup_stable_decay", decay_steps=8)
    rates = [config.learning_rate_at(step) / config.learning_rate for step in range(10)]
    assert rates[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    assert rates[7:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3)])

"""A run that is interrupted and resumed ends with the same bytes as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import Adafactor

from unmask import PPOTS, Bernoulli, ExactCount, IndependentMasking, ProgressiveUnmasking
from unmask.cli import main
from unmask.data.importance import RowImportance
from unmask.training import read_metrics
from unmask.training.callbacks import BestCheckpoint, EarlyStopping
from unmask.training.state import load_training

SMALL = {
    "model.layers": 1,
    "model.width": 16,
    "model.heads": 2,
    "batch-size": 8,
    "data.limit": 50,
    "evaluation.puzzles": 10,
    "evaluation.final-puzzles": 10,
    "tracker": "none",
    "threads": 1,
}
TINY = [f"--{name}={value}" for name, value in SMALL.items()]
COMMAND = [sys.executable, "-m", "unmask.cli"]
MASKINGS = {
    "exact count": IndependentMasking(mask=ExactCount()),
    "bernoulli": IndependentMasking(mask=Bernoulli(), coupling="stratified"),
    "P-POTS measured": IndependentMasking(PPOTS(refit_every=9, grid=4, rows=3, masks=2), ExactCount()),
    "P-POTS of the gradient": IndependentMasking(
        PPOTS(refit_every=9, grid=4, rows=2, masks=2, moment="gradient"), ExactCount()
    ),
    "P-POTS online": IndependentMasking(PPOTS(refit_every=9, grid=4, online=True), ExactCount()),
    "puma": ProgressiveUnmasking(stages=8),
    "puma fast-forward": ProgressiveUnmasking(stages=8, threshold=0.2, policy="margin"),
}


@pytest.mark.parametrize("masking", MASKINGS.values(), ids=MASKINGS)
def test_resumed_run_is_bitwise_equal_with_dropout_and_average(trainer, build, state_of, stop_at, masking):
    settings = {"masking": masking, "steps": 20, "checkpoint_every": 3, "ema_decay": 0.9, "evaluate_every": 1}
    whole = trainer("whole", model=build(dropout=0.2), evaluate=lambda model, last: {}, **settings).train()
    for evaluations in (5, 6, 3, 1):  # after step 5, 10, 13 and 14
        run = trainer("cut", model=build(dropout=0.2), evaluate=stop_at(evaluations), **settings)
        with pytest.raises(stop_at.error):
            run.train(resume=True)
    last = trainer("cut", model=build(dropout=0.2, seed=5), evaluate=lambda model, last: {}, **settings)
    cut = last.train(resume=True)
    assert whole.name == cut.name == "step-00000020"
    assert state_of(whole) == state_of(cut)
    logged = [
        [line["step"] for line in read_metrics(folder.parent.parent) if line["kind"] != "start"]
        for folder in (whole, cut)
    ]
    assert logged[0] == logged[1]
    assert {"model/model.safetensors", "ema/model.safetensors", "optimizer.safetensors"} <= set(state_of(whole))


class Broken(Exception):
    """What ends a run in the midst of a step."""


@pytest.mark.parametrize("masking", [MASKINGS["bernoulli"], MASKINGS["puma"]], ids=["bernoulli", "puma"])
@pytest.mark.parametrize("forwards", [1, 2, 3, 12, 13, 15])
def test_a_trainer_goes_on_from_a_checkpoint_whatever_it_was_in_the_midst_of(trainer, state_of, masking, forwards):
    """As in a notebook, where the cell that trains is run again: the broken step leaves nothing."""
    settings = {"masking": masking, "micro_batch_size": 4, "checkpoint_every": 2, "steps": 8}
    whole = trainer("whole", **settings).train()
    run, left = trainer("cut", **settings), iter(range(forwards))

    def breaks(*_: object) -> None:
        if next(left, None) is None:
            raise Broken

    hook = run.model.register_forward_hook(breaks)
    with pytest.raises(Broken):
        run.train()
    hook.remove()
    if forwards < 4:  # 2 forwards a step: nothing is saved yet, and its weights are not those of a start
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"has trained already.*make a new one"):
                run.train(**how)
        return
    assert state_of(run.train(resume=True)) == state_of(whole)
    told = [(line["kind"], line["step"]) for line in read_metrics(run.out) if line["kind"] == "train"]
    assert told == [("train", step) for step in range(1, 9)]


def test_a_trainer_that_is_done_overwrites_nothing(trainer):
    run = trainer()
    last = run.train()
    with pytest.raises(ValueError, match="has trained already"):
        run.train(overwrite=True)
    assert last.is_dir()
    place = last.stat().st_ino
    assert run.train(resume=True) == last
    assert last.stat().st_ino == place


def test_average_of_bf16_weights_survives_a_resume_bit_by_bit(trainer, build, state_of, stop_at):
    settings = {"steps": 30, "checkpoint_every": 3, "ema_decay": 0.99, "evaluate_every": 1, "learning_rate": 0.01}
    whole = trainer("whole", model=build().bfloat16(), **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", model=build().bfloat16(), evaluate=stop_at(20), **settings).train()
    assert state_of(trainer("cut", model=build().bfloat16(), **settings).train(resume=True)) == state_of(whole)


@pytest.mark.parametrize("of_config", ["float32", "bfloat16", None])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_weights_and_average_come_back_bit_by_bit_whatever_the_configs_dtype(
    trainer, build, weights, of_config
):
    """A model's weights may have left the precision that its config names, and an average is in fp32."""

    def made(seed):
        model = build(seed=seed, dtype=of_config).to(weights)
        return trainer("run", model=model, ema_decay=0.9, steps=1, learning_rate=0.01)

    run, again = made(0), made(1)
    folder = run.train()
    load_training(folder, again.parts)
    for found, saved in zip(again.model.parameters(), run.model.parameters(), strict=True):
        assert found.dtype == weights
        assert torch.equal(found, saved)
    for found, saved in zip(again.average.average, run.average.average, strict=True):
        assert torch.equal(found, saved)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.NAdam, lr=1e-2),  # its product of momenta is a scalar in fp32
        partial(Adafactor, lr=1e-2, scale_parameter=False, relative_step=False),  # its moments are
    ],
    ids=["NAdam", "Adafactor"],
)
def test_what_an_optimiser_keeps_in_fp32_of_bf16_weights_survives_a_resume(
    trainer, build, state_of, stop_at, optimizer
):
    settings = {"optimizer": lambda groups: optimizer(groups), "checkpoint_every": 2, "evaluate_every": 2}
    whole = trainer("whole", model=build().to(torch.bfloat16), evaluate=lambda *_: {}, **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", model=build().to(torch.bfloat16), evaluate=stop_at(2), **settings).train()
    again = trainer("cut", model=build().to(torch.bfloat16), evaluate=lambda *_: {}, **settings).train(resume=True)
    assert state_of(again) == state_of(whole)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process holds")
@pytest.mark.parametrize(
    "settings",
    [{"masking": ProgressiveUnmasking(stages=3, pool=16)}, {"importance": RowImportance()}],
    ids=["puma", "importance"],
)
def test_a_resumed_run_does_not_hold_on_to_the_checkpoint_that_it_came_from(trainer, settings):
    """A file that is mapped takes its place on the disk also when it is deleted, and on a network disk it stays."""
    settings |= {"schedule": "constant", "keep_checkpoints": 1}
    trainer(steps=2, **settings).train()
    again = trainer(steps=4, **settings)
    again.train(resume=True)
    assert "step-00000002" not in Path("/proc/self/maps").read_text()


def test_dropout_is_at_work_in_these_runs(trainer, build, state_of):
    dropped = trainer("dropped", model=build(dropout=0.2)).train()
    plain = trainer("plain", model=build(dropout=0.0)).train()
    assert state_of(dropped)["model/model.safetensors"] != state_of(plain)["model/model.safetensors"]


def test_resume_in_an_empty_folder_starts_afresh(trainer, state_of, tmp_path):
    (tmp_path / "empty").mkdir()
    fresh = trainer("fresh").train()
    assert state_of(trainer("empty").train(resume=True)) == state_of(fresh)
    assert state_of(trainer("absent").train(resume=True)) == state_of(fresh)


def test_resume_before_the_first_checkpoint_starts_afresh(trainer, state_of, stop_at, tmp_path):
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(3), evaluate_every=1).train()
    assert not (tmp_path / "cut" / "checkpoints").exists()
    assert state_of(trainer("cut").train(resume=True)) == state_of(trainer("whole").train())
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [0, 1, 2, 3, 4, 5, 6]


def test_resume_of_a_finished_run_changes_nothing(trainer, tmp_path):
    trainer().train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    trainer().train(resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_metrics_have_each_step_once_after_a_resume(trainer, stop_at, tmp_path):
    settings = {"checkpoint_every": 4, "evaluate_every": 1, "steps": 10}
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(7), **settings).train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + '{"kind": "train", "st')  # cut short by the crash
    trainer(evaluate=lambda model, last: {}, **settings).train(resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == list(range(1, 11))
    assert [line["step"] for line in read_metrics(tmp_path / "run", "evaluation")] == list(range(11))


def test_resumed_metrics_go_on_counting_tokens_and_epochs(trainer, stop_at, tmp_path):
    settings = {"checkpoint_every": 4, "evaluate_every": 1, "steps": 10, "masking": ProgressiveUnmasking()}
    trainer("whole", **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(7), **settings).train()
    trainer("cut", **settings).train(resume=True)
    seen = {
        name: [
            {k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(tmp_path / name, kind="train")
        ]
        for name in ("whole", "cut")
    }
    assert seen["whole"] == seen["cut"]
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "cut", "train")]
    assert seconds == sorted(seconds)


def test_a_full_disk_while_a_run_starts_again_loses_nothing(trainer, full_disk, stop_at, state_of, tmp_path):
    settings = {"steps": 8, "checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(5), **settings).train()
    kept = {name: (tmp_path / "cut" / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    again = trainer("cut", **settings)
    with full_disk(50), pytest.raises(OSError, match="File too large"):
        again.train(resume=True)
    assert {name: (tmp_path / "cut" / name).read_bytes() for name in kept} == kept
    assert state_of(trainer("cut", **settings).train(resume=True)) == state_of(trainer("whole", **settings).train())


def _started(out: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "train", "sudoku", "--out", str(out), *TINY, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def _kill(process: subprocess.Popen, when, limit: float = 120) -> None:
    """Send SIGKILL once `when` says so; the process is still running then, or has ended well."""
    began = time.monotonic()
    while process.poll() is None and not when() and time.monotonic() - began < limit:
        time.sleep(0.001)
    process.kill()  # nothing, where it has ended
    said = process.communicate()[1]
    assert process.returncode in (-signal.SIGKILL, 0), said


def _steps_logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


@pytest.mark.slow
def test_command_line_run_killed_at_a_random_moment_resumes_bitwise(tmp_path, state_of):
    options = ["--masking", "puma", "--steps", "80", "--checkpoint-every", "10", "--log-every", "1"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    moment = random.randrange(11, 60)
    _kill(process := _started(cut, *options), lambda: _steps_logged(cut) >= moment)
    assert process.returncode == -signal.SIGKILL, f"the run was over before it was killed at step {moment}"
    assert sorted((cut / "checkpoints").glob("step-*"))[-1].name < "step-00000080"
    main(["train", "sudoku", "--out", str(cut), *TINY, *options, "--resume"])
    main(["train", "sudoku", "--out", str(whole), *TINY, *options])
    last = "checkpoints/step-00000080"
    assert state_of(cut / last) == state_of(whole / last), f"killed after step {moment}"
    assert [line["step"] for line in read_metrics(cut, "train")] == list(range(1, 81))


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["standard", "puma"])
def test_command_line_run_killed_again_and_again_resumes_bitwise(tmp_path, state_of, masking):
    options = ["--masking", masking, "--steps", "80", "--checkpoint-every", "1", "--log-every", "1"]
    options += ["--ema-decay", "0.99"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    assert _started(whole, *options).wait() == 0
    moments = []
    for _ in range(2):
        delay = random.random() * 12  # also before the run has made its folder
        moments.append(f"{delay:.3f} s")
        began = time.monotonic()
        _kill(_started(cut, *options, "--resume"), lambda began=began, delay=delay: time.monotonic() - began > delay)
    for _ in range(3):  # in the middle of a save
        begun = set(cut.glob("checkpoints/.writing-*"))
        _kill(
            _started(cut, *options, "--resume"), lambda begun=begun: set(cut.glob("checkpoints/.writing-*")) - begun
        )
        moments.append(f"saving {[p.name for p in cut.glob('checkpoints/.writing-*')]}")
    assert _started(cut, *options, "--resume").wait() == 0
    last = "checkpoints/step-00000080"
    assert state_of(cut / last) == state_of(whole / last), f"killed at {moments}"
    assert "ema/model.safetensors" in state_of(cut / last)
    assert [line["step"] for line in read_metrics(cut, "train")] == list(range(1, 81))
    assert not list(cut.glob("checkpoints/.writing-*"))


class Full(Exception):
    """What an evaluation meets: no memory left, a full disk, a slip in code of one's own."""


@pytest.mark.parametrize("at", [4, 6], ids=["in the midst", "at the end"])
def test_an_evaluation_that_fails_loses_no_step_and_is_made_first_after_a_resume(trainer, state_of, tmp_path, at):
    """Else what was trained since the last checkpoint was lost, of a short run all."""

    def evaluation(fails):
        told = []

        def evaluate(model, last):
            told.append(len(told))
            if fails and 2 * told[-1] == at:
                raise Full
            return {"weights": float(sum(p.double().sum() for p in model.parameters()))}

        return evaluate

    settings = {"evaluate_every": 2, "checkpoint_every": None}
    whole = trainer("whole", evaluate=evaluation(False), **settings).train()
    with pytest.raises(Full):
        trainer("cut", evaluate=evaluation(True), **settings).train()
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == [f"step-{at:08}"]
    for _ in range(2):  # the second finds nothing to do
        last = trainer("cut", evaluate=evaluation(False), **settings).train(resume=True)
        assert state_of(last) == state_of(whole)
        evaluations = [read_metrics(tmp_path / name, "evaluation") for name in ("whole", "cut")]
        first, second = ([(line["step"], line["weights"]) for line in lines] for lines in evaluations)
        assert first == second


@pytest.mark.parametrize("losses", [[1.0] * 6, [9.0, 5.0, 1.0, 3.0, 2.0, 4.0]], ids=["stops", "keeps the best"])
def test_what_callbacks_heard_of_an_evaluation_made_after_a_resume_is_saved(trainer, state_of, losses, tmp_path):
    """Else a run that it ended went on, and one that was cut soon after forgot its best step."""

    def evaluation(begin, **ends):
        left = iter(range(begin, len(losses)))

        def evaluate(model, last):
            at = next(left)
            if str(at) in ends.get("at", ""):
                raise ends["by"]
            return {"loss": losses[at]}

        return evaluate

    def run(name, evaluate):
        callbacks = [EarlyStopping(patience=2), BestCheckpoint()] if losses[0] == losses[1] else [BestCheckpoint()]
        settings = {"evaluate_every": 2, "checkpoint_every": None, "steps": 10}
        return trainer(name, evaluate=evaluate, callbacks=callbacks, **settings)

    whole = run("whole", evaluation(0)).train()
    with pytest.raises(Full):
        run("cut", evaluation(0, at="2", by=Full)).train()
    if losses[0] != losses[1]:
        with pytest.raises(KeyboardInterrupt):
            run("cut", evaluation(2, at="3", by=KeyboardInterrupt)).train(resume=True)
    last = run("cut", evaluation(3 if losses[0] != losses[1] else 2)).train(resume=True)
    again = run("cut", evaluation(6)).train(resume=True)
    kept = [sorted(p.name for p in (tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "cut")]
    assert kept[0] == kept[1]
    assert again == last
    assert state_of(again) == state_of(whole)

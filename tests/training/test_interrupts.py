"""A run that is asked to end saves its step, says what is true, and ends with the code that schedulers expect."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.store import checkpoint
from unmask.training import interrupts, read_metrics

SMALL = [
    "--model.layers=1",
    "--model.width=16",
    "--model.heads=2",
    "--batch-size=8",
    "--data.limit=50",
    "--threads=1",
]
SMALL += ["--evaluation.puzzles=10", "--evaluation.final-puzzles=10", "--tracker=none", "--log-every=1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_command_saves_its_step_and_says_so(tmp_path, number, code):
    def train() -> None:
        with open(tmp_path / "said", "w") as sys.stderr:
            main(["train", "sudoku", "--steps", "100000", "--out", str(tmp_path / "run"), *SMALL])

    process = multiprocessing.get_context("fork").Process(target=train)  # which has imported all that it needs
    process.start()
    log, began = tmp_path / "run" / "metrics.jsonl", time.monotonic()
    try:
        while process.is_alive() and time.monotonic() - began < 120:
            if log.is_file() and log.read_text().count('"train"') >= 3:
                break
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(60)
    finally:
        process.kill()
    said = (tmp_path / "said").read_text()
    assert process.exitcode == code, said
    (last,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(last.name.removeprefix("step-")) == max(line["step"] for line in read_metrics(tmp_path / "run"))
    assert f"stopped at step {int(last.name.removeprefix('step-'))}, which is saved" in " ".join(said.split())


def _kill_self_at(step: int, *numbers: int):
    from unmask.training.callbacks import Callback

    class Kill(Callback):
        def step(self, done: int, metrics: dict) -> None:
            for number in numbers if done == step else ():
                os.kill(os.getpid(), number)

    return Kill()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_run_interrupted_from_python_resumes_bitwise(trainer, state_of, tmp_path, number, error):
    whole = trainer("whole", callbacks=[_kill_self_at(99, number)]).train()
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error) as ended:
        trainer("cut", callbacks=[_kill_self_at(3, number)]).train()
    assert error is KeyboardInterrupt or ended.value.code == 143
    # A callback hears of step 3 while step 4 is made.
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000004"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    cut = trainer("cut", callbacks=[_kill_self_at(99, number)]).train(resume=True)
    assert state_of(cut) == state_of(whole)


def test_a_signal_that_is_ignored_stays_so(trainer):
    """As nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        last = trainer("run", callbacks=[_kill_self_at(3, signal.SIGHUP)]).train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint.check(last)["step"] > 4


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_the_step_and_ends_all(forked_ranks, trainer, tmp_path):
    """As a scheduler sends it to one node."""

    def work(rank: int) -> None:
        trainer("cut", callbacks=[_kill_self_at(3 if rank == 1 else 99, signal.SIGTERM)]).train()

    assert forked_ranks(work) == [143, 143]
    (last,) = (tmp_path / "cut" / "checkpoints").iterdir()
    assert checkpoint.check(last)["step"] == 4
    assert {file.name for file in last.glob("rank-*.json")} == {"rank-0.json", "rank-1.json"}


def test_what_is_said_of_a_signal_waits_for_what_it_came_into_the_midst_of():
    """A signal may come while a line is being said, or what says it is being imported: neither can be done twice."""
    busy, said = threading.Lock(), []

    def noted(text: str) -> None:
        if busy.acquire(timeout=5):
            said.append(text)
            busy.release()

    with interrupts.Interrupts(noted) as found, busy:
        os.kill(os.getpid(), signal.SIGTERM)
        while not found.signal:
            time.sleep(0.01)
        assert not said
    assert found.signal == signal.SIGTERM
    assert len(said) == 1
    with interrupts.Interrupts(said.append):
        pass
    assert len(said) == 1


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_run_at_once(trainer, tmp_path, monkeypatch, second):
    monkeypatch.setattr(interrupts, "APART", -1.0)
    with pytest.raises(KeyboardInterrupt if second == signal.SIGINT else SystemExit):
        trainer("cut", callbacks=[_kill_self_at(3, signal.SIGINT, second)]).train()
    assert not (tmp_path / "cut" / "checkpoints").exists()


@pytest.mark.parametrize("more", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)])
def test_a_signal_that_comes_in_several_ways_is_one(trainer, tmp_path, more):
    """As Ctrl-C, which a terminal tells a program and whatever it has started, and the program them once more."""
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", callbacks=[_kill_self_at(3, signal.SIGINT, *more)]).train()
    assert checkpoint.newest(tmp_path / "cut" / "checkpoints").name == "step-00000004"


def test_the_command_line_claims_no_checkpoint_where_there_is_none(command, monkeypatch):
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.cli.sample.sample", interrupted)
    code, _, said = command("sample", "anything")
    assert code == 130
    assert said == "unmask: interrupted"


def test_checkpoints_are_written_by_time(trainer, tmp_path):
    trainer("often", steps=4, checkpoint_minutes=1e-9, keep_checkpoints=9).train()
    trainer("seldom", steps=4, checkpoint_minutes=60).train()
    trainer("never", steps=4, checkpoint_minutes=None).train()
    found = {p.name: len(list((p / "checkpoints").glob("step-*"))) for p in tmp_path.iterdir()}
    assert found == {"often": 4, "seldom": 1, "never": 1}


def test_saving_by_time_changes_no_bit(trainer, state_of):
    often = trainer("often", steps=4, checkpoint_minutes=1e-9).train()
    assert state_of(often) == state_of(trainer("seldom", steps=4).train())


def test_evaluating_ever_so_often_needs_an_evaluation(build, rows, tmp_path: Path):
    from unmask import IndependentMasking, Trainer, TrainingConfig

    with pytest.raises(ValueError, match="evaluate_every says how often"):
        Trainer(build(), IndependentMasking(), rows, config=TrainingConfig(evaluate_every=2), out=tmp_path / "run")

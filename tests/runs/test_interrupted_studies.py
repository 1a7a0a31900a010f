"""A study that is asked to end lets its runs save what they have trained, whoever asks whom."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.store import checkpoint
from unmask.training import read_metrics

ARMS = ("uniform-count", "puma")
SMALL = ["--model.layers=1", "--model.width=16", "--model.heads=2", "--batch-size=8", "--data.limit=300"]
SMALL += ["--evaluation.puzzles=10", "--evaluation.final-puzzles=10", "--log-every=1", "--evaluate-every=None"]


def _by_a_terminal(pid: int) -> None:
    """Ctrl-C goes to all processes of the group."""
    os.killpg(pid, signal.SIGINT)


def _by_name(pid: int) -> None:
    """The user, or a container's end, signals the one process that was started."""
    os.kill(pid, signal.SIGTERM)


def _by_a_scheduler(pid: int) -> None:
    """Every process of the job is signalled."""
    for each in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        os.kill(each, signal.SIGTERM)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for child processes in /proc")
@pytest.mark.parametrize(
    ("asks", "code"),
    [
        pytest.param(_by_a_terminal, 130, marks=pytest.mark.slow),
        (_by_name, 143),
        pytest.param(_by_a_scheduler, 143, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_study_has_saved_every_step_that_it_trained(tmp_path, asks, code):
    out = tmp_path / "study"
    runs = [out / arm / "seed-0" / "steps-100000" for arm in ARMS]

    def compare() -> None:
        os.setpgid(0, 0)
        sys.stderr = open(tmp_path / "said", "w", buffering=1)  # noqa: SIM115 - what ends the process is said there too
        main(["compare", "sudoku", "--arms", *ARMS, "--seeds=1", "--steps=100000", f"--out={out}", *SMALL])

    process = multiprocessing.get_context("fork").Process(target=compare)
    process.start()
    began = time.monotonic()
    while process.is_alive() and time.monotonic() - began < 120:
        logs = [run / "metrics.jsonl" for run in runs]
        if all(log.is_file() and log.read_text().count('"train"') >= 3 for log in logs):
            break
        time.sleep(0.05)
    asks(process.pid)
    process.join(60)
    said = " ".join((tmp_path / "said").read_text().split())
    assert process.exitcode == code, said
    assert "the same command goes on" in said
    for run in runs:
        last = checkpoint.newest(run / "checkpoints")
        assert last is not None, (run.parent / "steps-100000.log").read_text()
        assert checkpoint.check(last)["step"] == max(line["step"] for line in read_metrics(run))

"""What a run says of itself is for people: whoever listens, and whatever is said, it trains the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import pytest

from unmask.store import checkpoint
from unmask.training import read_metrics
from unmask.training.callbacks import Callback


class _Ends(Callback):
    """Ends the run at step 3 for a reason of its own."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def step(self, step: int, metrics: dict) -> None:
        self.stop = self.reason if step >= 3 else None


@pytest.mark.parametrize("reason", ["see [/data/why]", "loss above [red]", "plain"])
def test_reasons_of_callbacks_are_said_as_they_are_written(trainer, capsys, reason):
    last = trainer(callbacks=[_Ends(reason)]).train()
    assert checkpoint.check(last)["step"] == 4
    assert f"ends at step 4: {reason}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("at", "interrupted"), [(0, False), (3, False), (3, True)])
def test_a_run_goes_on_where_nobody_reads_what_it_says(trainer, tmp_path, at, interrupted):
    """As behind `| head`, or `| tee` once Ctrl-C has ended that: the run is trained, or saved, all the same."""
    reading, writing = os.pipe()
    calls = iter(range(9))

    def evaluate(model, last) -> dict:
        if next(calls) == at:
            os.close(reading)
            if interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    def train() -> None:
        os.dup2(writing, 2)
        os.close(writing)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as Python opens it
        trainer("run", evaluate=evaluate, evaluate_every=1).train()

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    os.close(reading)
    os.close(writing)
    process.join(60)
    steps = at if interrupted else 6
    assert process.exitcode == (143 if interrupted else 0)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") == checkpoint.folder_of(
        tmp_path / "run" / "checkpoints", steps
    )
    assert len(read_metrics(tmp_path / "run", "evaluation")) == 1 + steps

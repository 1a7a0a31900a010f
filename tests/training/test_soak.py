"""A long run: memory and steps a second stay what they were. UNMASK_SOAK_MINUTES says how long; 20 by default."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from unmask import ProgressiveUnmasking
from unmask.training.callbacks import Callback

MINUTES = float(os.environ.get("UNMASK_SOAK_MINUTES", "20"))
SETTLED = 0.25
"""Share of the run after which what is made once is made: the heap, the pool, the log."""


class Watch(Callback):
    """Notes resident memory and time at each step; ends the run when its time is over."""

    def __init__(self) -> None:
        self.until = time.monotonic() + 60 * MINUTES
        self.stop: str | None = None
        self.bytes: list[int] = []
        self.times: list[float] = []

    def step(self, step, metrics):
        self.times.append(time.monotonic())
        self.bytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        if self.times[-1] > self.until:
            self.stop = "the time is over"


@pytest.mark.slow
def test_a_long_run_grows_neither_in_memory_nor_in_time(trainer):
    """Chains, an average, evaluations and checkpoints over and over, as in a run of days."""
    watch = Watch()
    settings = {"steps": 10**7, "checkpoint_every": 100, "evaluate_every": 50, "ema_decay": 0.99, "log_every": 5}
    settings |= {"masking": ProgressiveUnmasking(stages=4), "evaluate": lambda model, last: {"loss": 1.0}}
    trainer(callbacks=[watch], **settings).train()
    assert watch.stop
    first = int(SETTLED * len(watch.bytes))
    held, seconds = np.array(watch.bytes[first:]), np.diff(watch.times)[first:]
    assert len(held) >= 300
    growth = np.polyfit(np.arange(len(held)), held, 1)[0] * len(held)
    assert growth < 0.02 * held.mean() + 2**20, f"{growth / 2**20:.1f} MiB more at the end of the run"
    early, late = (statistics.median(part) for part in (seconds[: len(seconds) // 3], seconds[-len(seconds) // 3 :]))
    assert late < 1.5 * early  # a machine's own moods are within this; a step that slows with the log is not

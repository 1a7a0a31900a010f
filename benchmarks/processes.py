"""How fast are two processes of one thread, as the ranks of one run, against one process of two threads?"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import step
from benchmarks.harness import Table
from unmask.training import read_metrics

REPEATS = 12
BATCH = 32
WARM = 4
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from datasets import Dataset
from benchmarks import step
from unmask import Clipped, ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean, Trainer, TrainingConfig

steps, threads, batch, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.manual_seed(0)
size = replace(step.SIZE, batch=batch)
tokens = size.rows()
maskable = [[position >= size.prompt for position in range(size.length)]] * len(tokens)
config = TrainingConfig(steps=steps, batch_size=batch, log_every=1, tracker="none", threads=threads, compile=False)
Trainer(MaskedDiffusionLM.from_config(size.config, size.mask_token),
        IndependentMasking(Clipped(0.49, 0.51), ExactCount()),
        Dataset.from_dict({"tokens": tokens.tolist(), "maskable": maskable}),
        RowMean(), config, out=Path(out)).train()
"""
NOTE = f"""Whole runs by `Trainer`, started as torchrun starts them and connected by gloo; {BATCH} rows a step over
all ranks. Milliseconds are the median of the steps after the first {WARM}, from the run's own log. The goal is .9 of
the rows a second of one process of two threads."""


def _step_ms(ranks: int, threads: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        started = []
        for rank in range(ranks):
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
            }
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": str(threads)}
            own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            command = [sys.executable, "-c", SCRIPT, str(steps), str(threads), str(BATCH), f"{folder}/run"]
            started.append(subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL))
        if any(process.wait() for process in started):
            raise RuntimeError("a rank failed")
        seconds = [line["seconds"] for line in read_metrics(Path(folder) / "run", "train")]
    return 1e3 * statistics.median(b - a for a, b in zip(seconds[WARM:], seconds[WARM + 1 :], strict=False))


def measure(repeats: int) -> Table:
    kinds = ((1, 2), (2, 1), (1, 1))
    ms = {kind: _step_ms(*kind, WARM + repeats + 1) for kind in kinds}
    rows = [
        {"processes": ranks, "threads of each": threads, "ms": found, "speed / one of two": ms[1, 2] / found}
        for (ranks, threads), found in ms.items()
    ]
    return Table({**asdict(step.SIZE), "batch": BATCH}, rows, NOTE)

"""Train several runs side by side, each in a process of its own, and show them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unmask.config import positive_int, to_json
from unmask.runs.config import RunConfig
from unmask.runs.metrics import read_metrics
from unmask.runs.progress import Display, TrainingProgress, shown_of

POLL_SECONDS = 0.5


def default_jobs(count: int) -> int:
    """Runs at a time: all of them on a CPU, where one thread each wastes least; one after another on a GPU."""
    return 1 if torch.cuda.is_available() else count


def train_side_by_side(
    runs: dict[str, RunConfig],
    out: Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Train every run in `out`/its name, with its output in `out`/its name.log.

    Args:
        runs: by name. Where a run does not say how many threads it takes, the cores are shared evenly.
        out: folder of the comparison.
        jobs: runs at a time; by default see `default_jobs`.
        resume: go on with runs that were interrupted; a finished one is left as it is.
        overwrite: delete runs that the folders hold.
        console: of the display; standard error by default.

    Raises:
        ValueError: for anything that a run refuses, before the first one starts; or where a run fails: the
            others are stopped, and their last checkpoints stay.
    """
    jobs = default_jobs(len(runs)) if jobs is None else jobs
    positive_int("jobs", jobs)
    threads = max(1, (os.cpu_count() or 1) // min(jobs, len(runs)))
    for name, run in runs.items():
        run.check(out / name, resume=resume, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    waiting = []
    for name, run in runs.items():
        if overwrite and (out / name).exists():
            shutil.rmtree(out / name)
        training = run.training if run.training.threads else replace(run.training, threads=threads)
        waiting.append(_Child(name, replace(run, training=training), out, resume))
    running: list[_Child] = []
    with Display(console) as display, ExitStack() as stack:
        bars = {child.name: TrainingProgress(display, child.name, child.run.training.steps) for child in waiting}
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start()
                stack.callback(running[-1].stop)
            time.sleep(POLL_SECONDS)
            for child in list(running):
                ended = child.ended()
                for line in child.news():
                    bar = bars[child.name]
                    if line["kind"] == "evaluation":
                        bar.evaluated(line["step"], **shown_of(line))
                    elif line["kind"] == "train":
                        bar.step(line["step"], loss=line["loss"])
                if ended:
                    running.remove(child)


class _Child:
    """One run in a process of its own."""

    def __init__(self, name: str, run: RunConfig, out: Path, resume: bool) -> None:
        self.name, self.run, self.folder, self.resume = name, run, out / name, resume
        self.log = out / f"{name}.log"
        self._seen = 0

    def start(self) -> None:
        config = self.log.with_suffix(".json")
        config.write_text(json.dumps(to_json(self.run), indent=2) + "\n")
        command = [sys.executable, "-m", "unmask.cli", "train", str(config), "--out", str(self.folder)]
        # Libraries that make thread pools of their own read the environment.
        environment = os.environ | {"OMP_NUM_THREADS": str(self.run.training.threads)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command + ["--resume"] * self.resume,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def news(self) -> Iterator[dict[str, Any]]:
        """Lines of its metrics that are new since the last call."""
        if (self.folder / "metrics.jsonl").is_file():
            lines = read_metrics(self.folder)
            yield from lines[self._seen :]
            self._seen = len(lines)

    def ended(self) -> bool:
        """Whether it is done; raises ValueError if it failed."""
        code = self.process.poll()
        if code:
            last = [line for line in self.log.read_text().splitlines() if line.strip()][-3:]
            raise ValueError(
                f"the run '{self.name}' failed (exit code {code}): {' '.join(last)} All of it: {self.log}"
            )
        return code is not None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

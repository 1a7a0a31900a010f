"""Do many jobs, several at a time, each in a process of its own, and show them all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from unmask.config import positive_int, require
from unmask.runs.job import Job
from unmask.store.metrics import read_metrics
from unmask.training.interrupts import Interrupts, end
from unmask.training.launched import check_alone
from unmask.training.progress import Display, StudyProgress, TrainingProgress, shown_of

POLL_SECONDS = 0.5


def default_jobs(count: int, devices: Sequence[int] = ()) -> int:
    """Runs at a time: one for each device; without one, a core each, and a few runs share the cores all at once."""
    if devices:
        return len(devices)
    cores = os.cpu_count() or 1
    return count if count < 2 * cores else cores


def default_devices() -> tuple[int, ...]:
    """Numbers of the GPUs that can be seen."""
    return tuple(range(torch.cuda.device_count()))


def check_asked(workers: int | None, devices: Sequence[int] | None) -> None:
    """Raise ValueError for a number of jobs, or for devices, that cannot be had here; and under a launcher."""
    check_alone("a study starts its runs itself: start it")
    if workers is not None:
        positive_int("jobs", workers)
    seen = len(default_devices())
    require(
        all(0 <= device < seen for device in devices or ()),
        f"devices {', '.join(map(str, devices or ()))}: here are {seen or 'no'} GPUs, numbered from 0 (--devices)",
    )


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    devices: Sequence[int] | None = None,
    console: Console | None = None,
) -> dict[str, str]:
    """Do the jobs in order, several at a time; those that are whole are passed over. One that fails stops no other.

    A job's output goes to a file beside its folder, NAME.log. All jobs end with this process; where a signal ends it
    (see `Interrupts`), each saves the step at hand first.

    Args:
        jobs: each with a name and a folder of its own. One that comes `after` another waits for it.
        workers: jobs at a time; by default see `default_jobs`. On a CPU the cores are shared evenly by those
            jobs that do not say how many threads they take.
        devices: numbers of the GPUs to use, in turn; by default all.
        console: of the display; standard error by default.

    Returns:
        What went wrong, by the names of the jobs that failed.

    Raises:
        ValueError: for anything that a run refuses, before the first one starts.
    """
    check_asked(workers, devices)
    for name, values in (("names", [job.name for job in jobs]), ("folders", [job.out for job in jobs])):
        require(len(set(values)) == len(values), f"jobs need {name} of their own, got {', '.join(map(str, values))}")
    for job in jobs:
        job.check()
    waiting = [job for job in jobs if not job.is_whole]
    devices = default_devices() if devices is None else devices
    workers = default_jobs(len(waiting), devices) if workers is None else workers
    if not waiting:
        return {}
    threads = max(1, (os.cpu_count() or 1) // min(workers, len(waiting)))
    free = [devices[i % len(devices)] if devices else None for i in range(workers)]
    running: list[_Child] = []
    failed: dict[str, str] = {}
    with (
        Display(console) as display,
        Interrupts(display.say, "the runs have saved") as interrupts,
        ExitStack() as stack,
    ):
        stack.callback(_stop, running)
        total = StudyProgress(display, {job.name: job.config.training.steps - job.steps_done for job in waiting})
        while waiting or running:
            unfinished = {job.out for job in waiting} | {child.job.out for child in running}
            for job in [job for job in waiting if job.after not in unfinished][: len(free)]:
                waiting.remove(job)
                if missing := next(
                    (other.name for other in jobs if other.out == job.after and not other.is_whole), None
                ):
                    failed[job.name] = (
                        f"the run '{job.name}' was not started: it needs '{missing}', which is not whole"
                    )
                    total.ended(job.name, "not started")
                else:
                    running.append(_Child(job, free.pop(0), threads, display))
            time.sleep(POLL_SECONDS)
            for child in list(running):
                code = child.process.poll()
                total.trained(child.job.name, child.show())
                if code is not None:
                    running.remove(child)
                    free.append(child.device)
                    child.bar.close()
                    if code:
                        failed[child.job.name] = child.complaint(code)
                    total.ended(child.job.name, "FAILED" if code else child.result)
            if interrupts.signal:
                _stop(running)
                text = "what the runs have trained is saved; the same command goes on, without --overwrite"
                display.say(text)
                end(interrupts.signal, text)
    return failed


def _stop(children: Sequence[_Child]) -> None:
    """Ask all to end, then wait until each has saved its step."""
    for child in children:
        child.process.terminate()  # nothing, where it has ended
    for child in children:
        child.process.wait()


class _Child:
    """A job in a process of its own, from now on."""

    def __init__(self, job: Job, device: int | None, threads: int, display: Display) -> None:
        training = job.config.training
        if training.threads is None and device is None:
            job = replace(job, config=replace(job.config, training=replace(training, threads=threads)))
        self.job, self.device, self.result = job, device, "done"
        self.log = job.out.with_name(f"{job.out.name}.log")
        self._first, self._seen = job.steps_done, 0
        self.bar = TrainingProgress(display, job.name, training.steps, self._first)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        path = self.log.with_suffix(".json")
        job.save(path)
        # A child imports what this process can. Libraries with thread pools of their own read the environment.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if job.config.training.threads:
            environment["OMP_NUM_THREADS"] = str(job.config.training.threads)
        if device is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "unmask.runs.job", str(path), *job.modules],
                stdin=subprocess.PIPE,  # closes with this process, and the child ends
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C comes to it from this process alone
            )

    def show(self) -> int:
        """Show what is new in its metrics; returns the steps done by this process."""
        for line in self._news():
            if line["step"] < self._first:  # of the process that was interrupted
                continue
            if line["kind"] == "evaluation":
                shown = shown_of(line)
                self.result = "  ".join(["done", *(f"{name} {value:.3f}" for name, value in shown.items())])
                self.bar.evaluated(line["step"], **shown)
            elif line["kind"] == "train":
                self.bar.step(line["step"], loss=line["loss"])
        return max(0, self.bar.done - self._first)

    def _news(self) -> Iterator[dict[str, Any]]:
        """Lines of its metrics that are new since the last call."""
        if (self.job.out / "metrics.jsonl").is_file():
            lines = read_metrics(self.job.out)
            yield from lines[min(self._seen, len(lines)) :]  # a resumed run forgets what came after its checkpoint
            self._seen = len(lines)

    def complaint(self, code: int) -> str:
        """What its output ends with."""
        said = self.log.read_text(errors="replace")  # whatever a library or the user's own code has written there
        last = [line for line in said.splitlines() if line.strip()][-3:]
        return f"the run '{self.job.name}' failed (exit code {code}): {' '.join(last)} All of it: {self.log}"

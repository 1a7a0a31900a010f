"""`advise`: a probe of a few minutes that says which arm to try first.

Each arm is trained for a few steps with every seed, as runs of a study below the folder, and judged on held-out rows
by the rule of `unmask.evaluation.advice`. The short runs alone decide. Why an arm may be ahead is measured besides,
on the first arm's model: where its gradient's noise comes from, and how near to a token what predicts it lies.

How long it takes is known beforehand from a few timed steps of each arm; how many steps fit into the minutes follows.
What was timed and trained stays in the folder: the same call again goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console

from unmask.config import positive_int, require, to_json
from unmask.data.streamed import at_hand
from unmask.evaluation.advice import ADVICE, Probe, advise_by
from unmask.evaluation.curve import Curve
from unmask.evaluation.decomposition import VARIANCE, load_variance, save_variance
from unmask.evaluation.likelihood import LikelihoodConfig
from unmask.evaluation.locality import LocalityConfig, locality
from unmask.evaluation.results import read_records
from unmask.evaluation.variance import Nested, compare_variance
from unmask.fitted_times import measured_for
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.parts import HeldOutLikelihood, HeldOutRows
from unmask.parts.maskings import MASKINGS
from unmask.runs.config import RunConfig, load_model
from unmask.runs.launch import check_asked, default_devices, default_jobs
from unmask.runs.prepare import looked_up, with_guide
from unmask.runs.study import Change, Study
from unmask.store.files import replace_text
from unmask.training import TrainingStep
from unmask.training.console import standard_error
from unmask.training.platform import autocast, autocast_dtype, default_device

COSTS, ROWS = "costs.json", "rows"
LEAST_STEPS = 20
START_SECONDS = 10.0
"""Of a run's process before its first step, on a busy host."""
ROWS_TIMED = 64
"""Batches of rows that steps are timed on, at most."""
RUNS, MEASURED = 0.75, 0.2
"""Shares of the minutes: of the short runs, and of what explains them."""
SPLIT = ("standard", "ppots-mirror")
"""Whose gradient's variance is measured: MDLM's masks, and the variance reduction of arXiv 2511.18159."""


@dataclass(frozen=True)
class ProbeConfig:
    """How much a probe does.

    Attributes:
        minutes: for all of it, about. Steps follow from it.
        seeds: runs of each arm; two at least are needed to see whether they agree.
        steps: of each short run. None: as many as fit into the minutes, at least `LEAST_STEPS`.
        rows: held-out rows that arms are compared on, at most.
    """

    minutes: float = 5.0
    seeds: int = 2
    steps: int | None = None
    rows: int = 256

    def __post_init__(self) -> None:
        require(self.minutes > 0, f"minutes must be greater than 0, got {self.minutes}")
        positive_int("seeds", self.seeds)
        positive_int("rows", self.rows, least=2)
        if self.steps is not None:
            positive_int("probe steps", self.steps)


@kinds_checked
def advise(
    config: RunConfig,
    arms: Mapping[str, Change],
    out: str | Path,
    probe: ProbeConfig | None = None,
    *,
    workers: int | None = None,
    devices: Sequence[int] | None = None,
    console: Console | None = None,
    command: str = "",
) -> Probe:
    """Say which arm to try first on these data, from short runs of all of them.

    Args:
        config: the run that is advised on; its steps are the horizon.
        arms: changes of it by name, as a `Study` takes them; the first one is what the page compares with, and what
            its model explains.
        out: folder of the probe: runs, records, advice.json, variance/.
        probe: how much is done.
        workers: runs at a time, as `run_jobs`.
        devices: numbers of the GPUs to use, as `run_jobs`.
        console: where time and progress are told; standard error by default.
        command: the command line that does it, kept in the records' provenance.

    Raises:
        ValueError: for fewer than two arms, or anything that a run refuses, before anything is trained.
    """
    probe, out, console = probe or ProbeConfig(), Path(out), console or standard_error(soft_wrap=True)
    require(len(arms) > 1, f"advice needs at least two arms, got {', '.join(arms) or 'none'}")
    check_asked(workers, devices)
    study = _study(config, arms, probe, steps=1)
    for cell in study.cells():
        cell.config.check(out / cell.name)
    devices = default_devices() if devices is None else devices
    costs = _costs(study, out, console)
    steps = probe.steps or _steps(probe, costs, devices, config.training.steps)
    study = _study(config, arms, probe, steps)
    _say(len(study.cells()), steps, costs, probe, devices, config.training.steps, console)
    study.run(out, workers=workers, devices=devices, console=console, command=command)
    first, seed = next(iter(arms)), config.training.seed
    model = load_model(study.job(study.cells([first], [seed])[0], out).last).to(default_device())
    seconds = 60 * MEASURED * probe.minutes / 2
    row_seconds = costs[first] / config.training.batch_size
    _split(model, at_hand(config.data.load()), out, seconds, row_seconds, console)
    curves = _locality(model, config.data.held_out(), seconds, row_seconds, console)
    found = read_advice(out, steps=steps, horizon=config.training.steps, locality=curves)
    found.save(out)
    return found


def read_advice(out: Path, *, steps: int, horizon: int, locality: tuple[Curve, ...] = ()) -> Probe:
    """Apply the rule to the records of a probe's runs of so many steps."""
    records = [record for record in read_records(out, "compare") if record["steps"] == steps]
    scores: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        rows = record["finals"][ROWS]["result"]
        # Every row counts by its length: the mean over rows is then the nats of a token.
        scores.setdefault(record["arm"], []).append(np.array(rows["nats"]) / np.mean(rows["tokens"]))
        seconds.setdefault(record["arm"], []).append(record["curve"][-1]["seconds"] / steps)
    costs = {arm: float(np.mean(values)) for arm, values in seconds.items()}
    return Probe(advise_by({arm: np.stack(found) for arm, found in scores.items()}), steps, horizon, costs, locality)


def _study(config: RunConfig, arms: Mapping[str, Change], probe: ProbeConfig, steps: int) -> Study:
    """The short runs. Each anneals its learning rate, as the whole run would."""
    training = config.training
    return Study(
        name=f"advise-{config.recipe}",
        base=replace(
            config,
            evaluation=HeldOutLikelihood(),
            training=replace(training, anneal_from=0, checkpoint_every=None, compile=False),
        ),
        arms=arms,
        control=next(iter(arms)),
        seeds=tuple(range(training.seed, training.seed + probe.seeds)),
        budgets=(steps,),
        finals={ROWS: HeldOutRows(rows=probe.rows)},
        warmup=0.1,
        evaluate=0.25,
        checkpoint=None,
    )


def _costs(study: Study, out: Path, console: Console) -> dict[str, float]:
    """Seconds of a step of each arm; those of the same runs that were timed before are read."""
    path, found = out / COSTS, {}
    timed: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for cell in study.cells(seeds=study.seeds[:1]):
        run = hashlib.sha256(json.dumps(to_json(cell.config)).encode()).hexdigest()[:16]
        if run not in timed:
            timed[run] = seconds_a_step(cell.config)
            console.print(f"{cell.arm}: about {timed[run]:.2g} s a step", highlight=False)
        found[cell.arm] = timed[run]
    out.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(timed, indent=2) + "\n")
    return found


def seconds_a_step(config: RunConfig, steps: int = 3) -> float:
    """Median time of a run's training steps, of a few after the first one: all but the optimiser's part."""
    training, device = config.training, default_device()
    torch.manual_seed(training.seed)
    model, dtype = config.model.build().to(device), autocast_dtype(training.precision, device)
    masking, objective = looked_up((config.masking, config.objective), config.tokenizer())
    rows = at_hand(config.data.load(), most := ROWS_TIMED * training.batch_size)
    rows = rows.select(range(min(len(rows), most)))
    step = TrainingStep(
        masking,
        with_guide(masking, objective, rows, model, device),
        training.batch_size,
        objective=objective,
        micro_batch_size=training.micro_batch_size,
        held_out=rows,
        importance=training.importance,
        seed=training.seed,
    )
    found = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        with autocast(device, dtype):
            step(model)
        if device.type == "cuda":
            torch.cuda.synchronize()
        model.zero_grad(set_to_none=True)
        found.append(time.perf_counter() - began)
    return float(np.median(found[1:]))


def _steps(probe: ProbeConfig, costs: Mapping[str, float], devices: Sequence[int], horizon: int) -> int:
    """As many as fit into the minutes of the runs."""
    runs = probe.seeds * len(costs)
    at_once = default_jobs(runs, devices)
    seconds = 60 * RUNS * probe.minutes - START_SECONDS * runs / at_once
    fit = seconds * max(1, len(devices)) / (probe.seeds * sum(costs.values()))
    return min(horizon, max(LEAST_STEPS, int(fit)))


def _say(
    runs: int,
    steps: int,
    costs: Mapping[str, float],
    probe: ProbeConfig,
    devices: Sequence[int],
    horizon: int,
    console: Console,
) -> None:
    """What will be done and how long that takes, before it is."""
    seconds = steps * probe.seeds * sum(costs.values()) / max(1, len(devices))
    seconds += START_SECONDS * runs / default_jobs(runs, devices) + 60 * MEASURED * probe.minutes
    console.print(
        f"{runs} runs of {steps} steps ({len(costs)} arms, {probe.seeds} seeds; {steps / horizon:.0%} of the run's "
        f"{horizon} steps), then variance and locality: about {lasting(seconds)} in all on "
        f"{f'{len(devices)} GPUs' if devices else f'{os.cpu_count()} cores'}. --minutes and --probe-steps change it.",
        highlight=False,
    )


def lasting(seconds: float) -> str:
    """A time in words."""
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{round(seconds / 60)} min"


def _split(
    model: MaskedDiffusionLM, rows: Dataset, out: Path, seconds: float, row_seconds: float, console: Console
) -> None:
    """Measure A, B and C once, with as many row sets as there is time for; none where there is too little."""
    path, batch_size = out / VARIANCE, 16
    if path.is_file() and load_variance(path):
        return
    arms: dict[str, Any] = {name: (MASKINGS[name].masking, MASKINGS[name].objective) for name in SPLIT}
    asked = [found for masking, _ in arms.values() if (found := measured_for(masking.time)) is not None]
    fit_seconds = row_seconds / 3 * sum(len(one.rates) * one.rows * one.masks for one in asked)  # forwards alone
    nested = Nested(row_sets=3, rates=3, masks=2)
    set_seconds = len(SPLIT) * nested.rates * nested.masks * batch_size * row_seconds
    nested = replace(nested, row_sets=min(24, max(nested.row_sets, int((seconds - fit_seconds) / set_seconds))))
    needed = fit_seconds + nested.row_sets * set_seconds
    about = f"about {lasting(needed)}"
    if needed > 2 * seconds or len(rows) < 2 * batch_size:
        console.print(f"Variance: left out, it would take {about}; unmask variance measures it", highlight=False)
        return
    console.print(f"Variance of the gradient under {' and '.join(SPLIT)}: {about}", highlight=False)
    found = compare_variance(model, rows, arms, batch_size, nested, seed=0, console=console)
    save_variance(path, found, {"title": ADVICE, "arms": list(SPLIT)})


def _locality(
    model: MaskedDiffusionLM, rows: Dataset, seconds: float, row_seconds: float, console: Console
) -> tuple[Curve, ...]:
    config = LocalityConfig(LikelihoodConfig(samples=2))
    forwards = 2 * (1 + len(config.radii))
    count = min(64, len(rows), int(3 * seconds / (forwards * row_seconds)))
    if count < 8:
        console.print("Locality: left out, there is no time for it; unmask evaluate measures it", highlight=False)
        return ()
    console.print(f"Locality: {count} rows", highlight=False)
    return locality(model, rows.select(range(count)), config)

"""How much variance does each sampler of rates and masks remove, at equal forward cost?

    python experiments/variance/run.py --task sudoku      # trains briefly if needed, then measures (15 minutes)
    python experiments/variance/run.py --task text
    python experiments/variance/run.py --task text --name best --row-sets 80 --arms standard exact-count

Trains a small model for a few hundred steps, then splits the variance of the ELBO's loss and gradient into masks
(A), rates (B) and rows (C) for every arm of the library and for the tries of ways.py, and measures the covariance
of mirrored pairs. Writes records/TASK-NAME.json, .png and .txt beside this file; more row
sets give narrower intervals.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from models import MODELS
from rich.console import Console
from ways import BASE, WAYS, uneven

from unmask import Bernoulli, ExactCount
from unmask.cli.variance import ARMS, ESTIMATES
from unmask.config import to_json
from unmask.evaluation.variance import (
    Nested,
    compare_variance,
    decompose,
    mirrored_covariance,
    save_variance,
)
from unmask.processes.refit import measure_profile
from unmask.report.figures import plot_variance
from unmask.report.tables import variance_table

HERE = Path(__file__).parent
UNEVEN = {f"  ... + rows drawn by {of}": of for of in ("loss", "gradient")}
EVERY = [*ESTIMATES, *WAYS, *UNEVEN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=MODELS, required=True)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the model that is measured")
    parser.add_argument("--row-sets", type=int, default=24)
    parser.add_argument("--arms", nargs="+", choices=EVERY, default=EVERY, metavar="ARM")
    parser.add_argument("--name", default="variance", help="of the record: TASK-NAME")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data = MODELS[options.task](options.steps, options.threads)

    console = Console(record=True, width=110)
    nested = Nested(row_sets=options.row_sets, rates=4, masks=2)
    chosen = {name: masking for name, masking in (ARMS | WAYS).items() if name in options.arms}
    arms = compare_variance(model, data, chosen, 16, nested, seed=0, console=Console(stderr=True))
    masking, _ = ARMS[BASE]
    time = masking.time.start()
    assert time.measures is not None
    time.refit(measure_profile(model, data.select(range(64)), masking.mask, time.measures))
    for name, of in UNEVEN.items():
        if name not in options.arms:
            continue
        stream = uneven(model, data.select(range(64, len(data))), of)
        arms[name] = decompose(model, replace(masking, time=time), stream, batch_size=16, nested=nested)
    console.print(variance_table(arms, "loss"), variance_table(arms, "gradient"))
    pairs = {type(rule).__name__: mirrored_covariance(model, data, rule) for rule in (Bernoulli(), ExactCount())}
    for rule, found in pairs.items():
        c, v = found["covariance"], found["variance"]
        console.print(
            f"mirrored pairs, {rule}: covariance of the two ELBO losses given row and rate "
            f"{c.value:.4f} ({c.low:.4f} to {c.high:.4f}); "
            f"variance of one {v.value:.4f} ({v.low:.4f} to {v.high:.4f})"
        )
    about = {
        "task": options.task,
        "steps": options.steps,
        "nested": to_json(nested),
        "batch_size": 16,
        "mirrored_pairs": {rule: {k: asdict(e) for k, e in found.items()} for rule, found in pairs.items()},
    }
    path = HERE / "records" / f"{options.task}-{options.name}.json"
    save_variance(path, arms, about)
    plot_variance(arms, path.with_suffix(".png"), title=f"{options.task} model after {options.steps} steps")
    path.with_suffix(".txt").write_text(console.export_text())


if __name__ == "__main__":
    main()

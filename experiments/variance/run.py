"""How much variance does each sampler of rates and masks remove, at equal forward cost?

    python experiments/variance/run.py             # trains briefly if needed, then measures (about 10 minutes)

Trains the Sudoku recipe for a few hundred steps, then splits the variance of the ELBO's loss and gradient into
masks (A), rates (B) and rows (C) for every arm, and measures the covariance of mirrored pairs. Writes
records/variance.json, records/variance.png and records/variance.txt beside this file.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from unmask import Bernoulli, ExactCount
from unmask.config import to_json
from unmask.evaluation.variance import ARMS, Nested, compare_variance, mirrored_covariance, save_variance
from unmask.recipes import sudoku
from unmask.recipes.base import load_model, load_run
from unmask.report.figures import plot_variance
from unmask.report.tables import variance_table

HERE = Path(__file__).parent
RUN = Path("runs/variance-model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of the model that is measured")
    parser.add_argument("--row-sets", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    config = sudoku("standard")
    training = replace(config.training, steps=options.steps, evaluate_every=None, threads=options.threads)
    config = replace(config, training=training, evaluation=replace(config.evaluation, final_puzzles=100))
    config.train(RUN, resume=True)
    model, data = load_model(load_run(RUN)[1]), config.data.load()

    console = Console(record=True, width=110)
    nested = Nested(row_sets=options.row_sets, rates=4, masks=2)
    arms = compare_variance(
        model, data, tuple(ARMS), batch_size=16, nested=nested, seed=0, console=Console(stderr=True)
    )
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
        "recipe": to_json(config.described),
        "training": to_json(config.training),
        "nested": to_json(nested),
        "batch_size": 16,
        "mirrored_pairs": {rule: {k: asdict(e) for k, e in found.items()} for rule, found in pairs.items()},
    }
    records = HERE / "records"
    save_variance(records, arms, about)
    plot_variance(arms, records / "variance.png", title=f"Sudoku model after {options.steps} steps")
    (records / "variance.txt").write_text(console.export_text())


if __name__ == "__main__":
    main()

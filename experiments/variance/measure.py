"""A, B and C of every masking's loss and gradient, at equal forwards, on models trained for 400 steps.

    python -m experiments.variance.measure text       # a quarter of an hour on one core
    python -m experiments.variance.measure sudoku

These rows have no delimiters of answers: `delimiters`, which is ISAD, takes a frequent token for one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unmask.cli import main as unmask
from unmask.cli.variance import ARMS
from unmask.data import character_tokenizer
from unmask.store.checkpoint import newest

RUNS = {
    "text": ["sotu", "--data.length", "64", "--model.layers", "2", "--batch-size", "16"],
    "sudoku": ["sudoku", "--model.layers", "2", "--batch-size", "16", "--evaluation.final-puzzles", "100"],
}
DELIMITER = {"text": int(character_tokenizer(alphabet="27").encode("e")[0]), "sudoku": 1}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=RUNS)
    parser.add_argument("--row-sets", type=int, default=24)
    options = parser.parse_args()
    run = Path("runs") / f"variance-{options.task}"
    if newest(run / "checkpoints") is None:
        unmask(["train", *RUNS[options.task], "--masking", "uniform-count", "--steps", "400", "--out", str(run)])
    isad = f"IndependentMasking(mask=Delimiters(({DELIMITER[options.task]},)), coupling='stratified'), InverseRate()"
    arms = [f"delimiters={isad}" if name == "isad" else name for name in ARMS]
    out = Path("experiments/variance") / options.task
    unmask(["variance", str(run), "--nested.row-sets", str(options.row_sets), "--out", str(out), "--arms", *arms])


if __name__ == "__main__":
    main()

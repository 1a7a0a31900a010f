"""A, B and C of every masking's loss and gradient, at equal forwards, on models trained for 400 steps.

    python -m experiments.variance.measure    # half an hour on one core

These rows have no delimiters of answers: `delimiters`, which is ISAD, takes a frequent token for one.
"""

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
    for task, words in RUNS.items():
        run = Path("runs") / f"variance-{task}"
        if newest(run / "checkpoints") is None:
            unmask(["train", *words, "--masking", "uniform-count", "--steps", "400", "--out", str(run)])
        isad = f"IndependentMasking(mask=Delimiters(({DELIMITER[task]},)), coupling='stratified'), InverseRate()"
        arms = [f"delimiters={isad}" if name == "isad" else name for name in ARMS]
        out = f"experiments/variance/{task}"
        unmask(["variance", str(run), "--nested.row-sets", "24", "--out", out, "--arms", *arms])


if __name__ == "__main__":
    main()

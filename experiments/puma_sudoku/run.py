"""Train one arm of the Sudoku recipe and decode it under four policies: the data of PUMA's figures 4 and 5.

    python -m experiments.puma_sudoku.run --arm standard puma-8-until --seed 1 2 --steps 2000

Every run appends one line to experiments/puma_sudoku/records.jsonl: its learning curve, and at the end the share
of solved puzzles for each policy and stratum. `report.py` makes tables and the figure from these lines. Screening
(--screen) decodes puzzles that the comparison does not use.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.common import append, loop
from unmask.config import to_json
from unmask.data.sudoku import load_sudoku
from unmask.evaluation.speedup import Arm
from unmask.evaluation.tasks import SudokuTask
from unmask.masks import ExactCount
from unmask.parts.sudoku import CLUES
from unmask.processes import IndependentMasking, Masking, Mixture, ProgressiveUnmasking
from unmask.recipes import sudoku
from unmask.runs.config import load_model
from unmask.times import Clipped

STANDARD = IndependentMasking(mask=ExactCount())
ARMS: dict[str, Masking] = {
    "standard": STANDARD,
    "high-rates": IndependentMasking(time=Clipped(0.5, 1.0), mask=ExactCount()),
    "puma-4": ProgressiveUnmasking(stages=4),
    "puma-8": ProgressiveUnmasking(stages=8),
    "puma-16": ProgressiveUnmasking(stages=16),
    "puma-4-tau": ProgressiveUnmasking(stages=4, threshold=0.9),
    "puma-8-tau": ProgressiveUnmasking(stages=8, threshold=0.9),
    "puma-16-tau": ProgressiveUnmasking(stages=16, threshold=0.9),
    "puma-4-until": ProgressiveUnmasking(stages=4, threshold=0.8, until=0.5),
    "puma-8-until": ProgressiveUnmasking(stages=8, threshold=0.8, until=0.5),
    "puma-16-until": ProgressiveUnmasking(stages=16, threshold=0.8, until=0.5),
    "mix-8-tau": Mixture(ProgressiveUnmasking(stages=8, threshold=0.9), STANDARD, share=0.5),
    "mix-8-until": Mixture(ProgressiveUnmasking(stages=8, threshold=0.8, until=0.5), STANDARD, share=0.25),
}
POLICIES = ("confidence", "margin", "entropy", "random")
PUZZLES = 500


def train(arm: str, seed: int, steps: int, screen: bool) -> dict[str, Any]:
    """Train and evaluate one run; return its record."""
    config = replace(sudoku(), masking=ARMS[arm])
    training = replace(config.training, **loop(steps, seed))
    task = SudokuTask(clues=CLUES, puzzles=160, final_puzzles=160)
    config = replace(config, training=training, evaluation=task)
    with tempfile.TemporaryDirectory() as folder:
        last = config.train(Path(folder) / "run", name=f"{arm} {seed}")
        curve = [
            {key: point[key] for key in ("step", "seconds", "solved", "loss")}
            for point in Arm.load(Path(folder) / "run").curve
        ]
        model = load_model(last)
    rows = load_sudoku("test", clues=CLUES)
    # Puzzles of one parity are for screening, those of the other for the comparison; both evenly over the strata.
    rows = rows.select(range(0 if screen else 1, len(rows), 2))
    rows = rows.shuffle(seed=0).select(range(PUZZLES))
    found = {}
    for policy in POLICIES if not screen else POLICIES[:1]:
        with torch.autocast("cpu", torch.bfloat16):
            result = replace(task, decoding=replace(task.decoding, policy=policy)).evaluate(model, rows)
        found[policy] = {"solved": result["solved"], "strata": {k: v["solved"] for k, v in result["strata"].items()}}
    head = {"arm": arm, "masking": to_json(ARMS[arm]), "seed": seed, "steps": steps, "screen": screen}
    return {**head, "puzzles": PUZZLES, "policies": found, "curve": curve}


def main() -> None:
    """Run arms, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", nargs="+", required=True, choices=ARMS)
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--screen", action="store_true")
    args = parser.parse_args()
    for seed in args.seed:
        for arm in args.arm:
            record = train(arm, seed, args.steps, args.screen)
            append(Path(__file__).parent / "records.jsonl", record)
            solved = {policy: round(found["solved"], 3) for policy, found in record["policies"].items()}
            print(arm, seed, args.steps, solved, flush=True)


if __name__ == "__main__":
    main()

"""Sudoku: a small model, trained in minutes on two cores, that solves unseen puzzles exactly."""

from __future__ import annotations

from unmask.evaluation.tasks import SudokuTask
from unmask.parts import SudokuData, SudokuModel, named_masking
from unmask.parts.sudoku import CLUES
from unmask.processes import ProgressiveUnmasking
from unmask.runs.config import RunConfig
from unmask.times import Clipped
from unmask.training import TrainingConfig

PUMA = ProgressiveUnmasking(stages=8, threshold=0.8, time=Clipped(0.5, 1.0))


def sudoku(masking: str = "uniform-count") -> RunConfig:
    """Train a small model on bundled Sudokus with 29 to 45 clues, and solve unseen ones.

    "puma" has 8 stages and a threshold of .8, and its chains end half revealed, where Sudoku has little left to
    learn; "high-rates", independent masks at rates of a half and more, is its control.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    return RunConfig(
        recipe="sudoku",
        data=SudokuData(),
        model=SudokuModel(),
        **named_masking(masking, PUMA),
        training=TrainingConfig(
            steps=2000, batch_size=16, learning_rate=2e-3, warmup_steps=80, evaluate_every=200, log_every=20
        ),
        # PUMA's settings were chosen on the other half (experiments/puma_sudoku).
        evaluation=SudokuTask(clues=CLUES, half=1, puzzles=160, final_puzzles=1000),
    )

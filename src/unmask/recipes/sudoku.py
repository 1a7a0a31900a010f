"""Sudoku: a small model, trained in minutes on two cores, that solves unseen puzzles exactly."""

from __future__ import annotations

from unmask.config import check_name
from unmask.evaluation.tasks import SudokuTask
from unmask.masks import ExactCount
from unmask.objectives import RowMean
from unmask.parts import SudokuData, SudokuModel
from unmask.parts.sudoku import CLUES
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.runs.config import RunConfig
from unmask.times import Clipped
from unmask.token_rates import HalfLife
from unmask.training import TrainingConfig

MASKINGS: dict[str, Masking] = {
    "standard": IndependentMasking(mask=ExactCount()),
    "puma": ProgressiveUnmasking(stages=8, threshold=0.8, time=Clipped(0.5, 1.0)),
    "puma-paper": ProgressiveUnmasking(stages=8, pool="batch"),
    "complement": IndependentMasking(mask=ExactCount(), pair="complement"),
    "half-life": IndependentMasking(mask=HalfLife()),
    "high-rates": IndependentMasking(time=Clipped(0.5, 1.0), mask=ExactCount()),
}


def sudoku(masking: str = "standard") -> RunConfig:
    """Train a small model on bundled Sudokus with 29 to 45 clues, and solve unseen ones.

    Args:
        masking: "standard": number of masked cells uniform. "puma": progressive unmasking with fast-forward, its
            chains ending half revealed, where Sudoku has little left to learn. "puma-paper": the paper's whole
            chain. "complement": a mask and its complement. "half-life": rates by position. "high-rates": independent
            masks at rates of a half and more, the control for "puma". All with the row-mean loss, as in the PUMA
            paper.
    """
    check_name("masking", masking, MASKINGS)
    return RunConfig(
        recipe="sudoku",
        data=SudokuData(),
        model=SudokuModel(),
        masking=MASKINGS[masking],
        objective=RowMean(),
        training=TrainingConfig(
            steps=2000, batch_size=16, learning_rate=2e-3, warmup_steps=80, evaluate_every=200, log_every=20
        ),
        evaluation=SudokuTask(clues=CLUES, puzzles=160, final_puzzles=1000),
    )

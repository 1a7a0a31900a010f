"""A study of tiny runs on Sudoku, of which tests change what they look at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask import ProgressiveUnmasking
from unmask.evaluation.tasks import SudokuTask
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.runs.study import Study
from unmask.training import TrainingConfig

BASE = replace(
    sudoku(),
    data=SudokuData(limit=20),
    model=SudokuModel(layers=1, width=16, heads=2),
    training=TrainingConfig(steps=4, batch_size=8, warmup_steps=2, evaluate_every=2, log_every=1, threads=1),
    evaluation=SudokuTask(clues=(40, 45), puzzles=4, final_puzzles=8),
)


@pytest.fixture(scope="session")
def tiny_study():
    """Make the study, with changes."""

    def make(**changes) -> Study:
        arms = {"standard": {}, "puma": {"masking": ProgressiveUnmasking(stages=4)}}
        return Study(**{"name": "tiny", "base": BASE, "arms": arms, "seeds": (1,), "control": "standard", **changes})

    return make

"""Sudoku: a small model, trained in minutes on two cores, that solves unseen puzzles exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from transformers import GPT2Config

from unmask.config import nearest, positive_int, require
from unmask.data.sudoku import CELLS, MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.evaluation.tasks import SudokuTask
from unmask.masks import ExactCount
from unmask.model import MaskedDiffusionLM
from unmask.objectives import RowMean
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.recipes.base import RunConfig
from unmask.training import TrainingConfig


@dataclass(frozen=True)
class SudokuData:
    """The bundled training puzzles."""

    form: Literal["grid", "pair"] = "grid"
    """grid: 81 tokens, the empty cells are masked. pair: 162 tokens, puzzle then answer, as in the PUMA paper."""
    clues: tuple[int, int] = (25, 45)
    """Least and most clues of a puzzle."""
    limit: int | None = None
    """Rows, evenly over the strata of clue counts; None for all 64,000."""

    def load(self) -> Dataset:
        """The rows."""
        return load_sudoku("train", form=self.form, clues=self.clues, limit=self.limit)


@dataclass(frozen=True)
class SudokuModel:
    """A GPT-2 body made bidirectional: learned positions and ReLU, the fastest of the library's on a CPU here."""

    layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Hidden size; a multiple of `heads`."""
    heads: int = 4
    """Attention heads."""
    positions: int = CELLS
    """Longest row: 81 for grids, 162 for pairs."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "positions"):
            positive_int(name, getattr(self, name))
        require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")

    def build(self) -> MaskedDiffusionLM:
        """The model with random weights."""
        config = GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=self.positions,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            activation_function="relu",
            initializer_range=self.init_std,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "eager"  # plain products beat SDPA's CPU kernel at this length
        return MaskedDiffusionLM.from_config(config, MASK_TOKEN)


MASKINGS: dict[str, Masking] = {
    "standard": IndependentMasking(mask=ExactCount()),
    "puma": ProgressiveUnmasking(stages=8, threshold=0.9),
}


def sudoku(masking: str = "standard") -> RunConfig:
    """Train on 64,000 puzzles with 25 to 45 clues, and solve unseen ones.

    Args:
        masking: "standard" (number of masked cells uniform) or "puma" (progressive unmasking with
            fast-forward). Both use the row-mean loss, as in the PUMA paper.
    """
    if masking not in MASKINGS:
        raise ValueError(f"unknown masking '{masking}'{nearest(masking, MASKINGS)}")
    return RunConfig(
        recipe="sudoku",
        data=SudokuData(),
        model=SudokuModel(),
        masking=MASKINGS[masking],
        objective=RowMean(),
        training=TrainingConfig(steps=1500, batch_size=64, learning_rate=1e-3, warmup_steps=50, evaluate_every=100),
        evaluation=SudokuTask(),
    )

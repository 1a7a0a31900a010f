"""Sudoku: a small model, trained in minutes on two cores, that solves unseen puzzles exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Config

from unmask.config import nearest, positive_int, require
from unmask.data.sudoku import CELLS, MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.evaluation.tasks import SudokuTask
from unmask.masks import ExactCount
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.objectives import RowMean
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.runs.config import RunConfig
from unmask.times import Clipped
from unmask.training import TrainingConfig

CLUES = (29, 45)
HELD_OUT = 256


@dataclass(frozen=True)
class SudokuData:
    """The bundled training puzzles."""

    form: Literal["grid", "pair"] = "grid"
    """grid: 81 tokens, the empty cells are masked. pair: 162 tokens, puzzle then answer, as in the PUMA paper."""
    clues: tuple[int, int] = CLUES
    """Least and most clues of a puzzle."""
    limit: int | None = None
    """Rows to train on; None for all."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            positive_int("limit", self.limit)

    def load(self) -> Dataset:
        """The rows."""
        rows = load_sudoku("train", form=self.form, clues=self.clues)
        rows = rows.select(range(len(rows) - HELD_OUT))
        return rows if self.limit is None else rows.select(range(min(self.limit, len(rows))))

    def held_out(self) -> Dataset:
        """The last rows of the training split."""
        rows = load_sudoku("train", form=self.form, clues=self.clues)
        return rows.select(range(len(rows) - HELD_OUT, len(rows)))


@dataclass(frozen=True)
class SudokuModel:
    """A GPT-2 body made bidirectional: learned positions, and the fastest of the library's bodies on a CPU here.

    Two things in its random start matter more than size or learning rate (docs/LOG.md): each position begins as
    the sum of a vector for its row, one for its column and one for its box, and token vectors begin at length
    sqrt(width). All of them are trained like any other weight.
    """

    layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Hidden size; a multiple of `heads`."""
    heads: int = 4
    """Attention heads."""
    positions: int = CELLS
    """Longest row: 81 for grids, 162 for pairs."""
    init_std: float = 0.05
    """Standard deviation of the initial weights of the blocks."""

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
            activation_function="gelu",
            initializer_range=self.init_std,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "eager"  # plain products beat SDPA's CPU kernel at this length
        model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
        position = torch.arange(self.positions)
        half, (row, column) = position // CELLS, (position % CELLS // 9, position % 9)
        box = row // 3 * 3 + column // 3
        start = 0.6 * torch.randn(4, 9, self.width)
        tokens, places = (cast(nn.Embedding, model.backbone.get_submodule(name)) for name in ("wte", "wpe"))
        with torch.no_grad():
            tokens.weight.normal_(std=1.0)
            places.weight.copy_(start[0][row] + start[1][column] + start[2][box] + (half > 0)[:, None] * start[3][0])
        return model


MASKINGS: dict[str, Masking] = {
    "standard": IndependentMasking(mask=ExactCount()),
    "puma": ProgressiveUnmasking(stages=8, threshold=0.8, until=0.5),
    "puma-paper": ProgressiveUnmasking(stages=8),
    "high-rates": IndependentMasking(time=Clipped(0.5, 1.0), mask=ExactCount()),
}


def sudoku(masking: str = "standard") -> RunConfig:
    """Train a small model on bundled Sudokus with 29 to 45 clues, and solve unseen ones.

    Args:
        masking: "standard": number of masked cells uniform. "puma": progressive unmasking with fast-forward, its
            chains ending half revealed, where Sudoku has little left to learn. "puma-paper": the paper's whole
            chain. "high-rates": independent masks at rates of a half and more, the control for "puma". All with
            the row-mean loss, as in the PUMA paper.
    """
    if masking not in MASKINGS:
        raise ValueError(f"unknown masking '{masking}'{nearest(masking, MASKINGS)}")
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

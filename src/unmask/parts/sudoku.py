"""Sudoku: the bundled puzzles as rows, and the model that solves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from datasets import Dataset
from torch import nn

from unmask.config import positive_int, require
from unmask.data.sudoku import CELLS, MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.parts.models import gpt2_config

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
        config = gpt2_config(VOCAB_SIZE, self.positions, self.width, self.layers, self.heads, self.init_std)
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

"""Maskings that are not part of the library, tried for the gradient's sake: see docs/LOG.md for how they fared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from unmask import ELBO, PPOTS, ExactCount, IndependentMasking, MaskedDiffusionLM, RowImportance, RowStream, noise
from unmask.processes.refit import evaluation_field, loss_and_gradient, row_losses


@dataclass(frozen=True)
class Tiled(IndependentMasking):
    """MIRROR for more than two: `tiles` rows share clean row, rate and one field of uniforms, and row j reads
    it turned by j / tiles, as (u + j / tiles) mod 1. Up to a rate of 1 / tiles the masks are disjoint; at it
    they tile the row. Each mask by itself has the rule's own law."""

    tiles: int = 2

    def assemble(self, clean: Any, t: Tensor, time: Any, uniform: Tensor, other: Any) -> Any:
        row = torch.arange(len(clean)).repeat_interleave(self.tiles)
        turn = torch.arange(self.tiles).repeat(len(clean))[:, None] / self.tiles
        return super().assemble(clean[row], t[row], time, (uniform[row] + turn) % 1, None)

    def start(self, rows: RowStream, batch_size: int, *options: Any) -> Any:
        process = super().start(rows, batch_size, *options)
        process.units = batch_size // self.tiles
        return process


@dataclass(frozen=True)
class Shared(IndependentMasking):
    """All rows of a batch read one field of uniforms, row i turned by i / rows: positions are masked evenly over
    the batch, but no row is trained twice."""

    def assemble(self, clean: Any, t: Tensor, time: Any, uniform: Tensor, other: Any) -> Any:
        turn = torch.arange(len(clean))[:, None] / len(clean)
        return super().assemble(clean, t, time, (uniform[:1] + turn) % 1, None)


RATES = PPOTS(optimum="stratified", moment="gradient", masks=2)
BASE = "ppots-gradient-exact-count"
WAYS: dict[str, IndependentMasking] = {
    "  ... + one field for all rows": Shared(RATES, ExactCount(), "stratified"),
    "  ... + 2 tiles": Tiled(RATES, ExactCount(), "stratified", tiles=2),
    "  ... + 4 tiles": Tiled(RATES, ExactCount(), "stratified", tiles=4),
    "  ... + 16 tiles (one row a batch)": Tiled(RATES, ExactCount(), "stratified", tiles=16),
}


def uneven(model: MaskedDiffusionLM, dataset: Dataset, of: str, rows: int = 256, masks: int = 6) -> RowStream:
    """Rows drawn in proportion to their loss, or to the length of their gradient.

    The scale of each row is a mean over `masks` stratified rates with exact counts.
    """
    stream = RowStream(dataset.select(range(min(rows, len(dataset)))), importance=RowImportance(memory=0.0))
    masking, index = IndependentMasking(mask=ExactCount()), torch.arange(len(stream.dataset))
    clean = stream.rows(index)
    scales = []
    for m in range(masks):
        t = (m + noise.slot_uniforms(0, m, index, purpose=noise.Purpose.EVALUATION)) / masks
        batch = masking.assemble(clean, t, masking.time, evaluation_field(1, clean, m), None)
        if of == "loss":
            scales.append(row_losses(model, batch))
        else:
            lengths = [loss_and_gradient(model, batch[i : i + 1], ELBO())[1].norm() for i in index.tolist()]
            scales.append(torch.stack(lengths).double())
    stream.observe(index, torch.stack(scales).mean(0))
    return stream

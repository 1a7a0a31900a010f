"""What a training step shows about mask rates and weights, at next to no cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.batch import MaskedBatch
from unmask.store.metrics import FILE_NAME, read_metrics
from unmask.training.smoothing import SmoothLoss

BINS = 10


class Diagnostics:
    """The figures of the steps that are logged."""

    def __init__(self) -> None:
        self.smooth = SmoothLoss()

    def resume(self, folder: Path, step: int) -> None:
        """Take up what the log of a run had seen after `step` steps; where there is no log, nothing."""
        if (folder / FILE_NAME).is_file():
            self.smooth = SmoothLoss.of(read_metrics(folder, "train"), step)

    def of(
        self,
        batch: MaskedBatch,
        nll: Tensor,
        weights: Tensor,
        gradient: Tensor,
        normaliser: Tensor,
        total: Callable[[Tensor], Tensor],
    ) -> dict[str, Any]:
        """What `summary` tells of a step, and "loss_smooth".

        Args:
            batch: this rank's rows.
            nll: [B, L] nats of the masked tokens.
            weights: [B, L] their weights before Z.
            gradient: [B, L] as for `by_rate`.
            normaliser: Z, over all ranks.
            total: the sum of a tensor over the ranks.
        """
        sums = by_rate(batch, nll, weights, gradient).flatten()
        sums = total(torch.cat([sums, weight_sums(weights, batch.masked)]))
        found = summary(sums[: 5 * BINS].view(BINS, 5), sums[5 * BINS :], float(normaliser))
        parts = found["by_rate"]
        return {**found, "loss_smooth": self.smooth.update(parts["rows"], parts["part"])}


def by_rate(batch: MaskedBatch, nll: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Sums over this rank's rows by bin of the masked share; the sums of ranks add up.

    Args:
        batch: the rows of a step.
        nll: [B, L] nats of the masked tokens.
        weights: [B, L] their weights in the loss.
        gradient: [B, L] length of the loss's gradient with respect to each masked token's hidden state.

    Returns:
        [BINS, 5] float64: rows, masked tokens, Σ nll, Σ gradient², Σ weight · nll.
    """
    count = batch.masked.sum(1)
    bin_ = (count * BINS / batch.clean.effective_length).ceil().long().clamp(1, BINS) - 1
    nll = nll.double()
    losses = [nll.sum(1), (gradient.double() ** 2).sum(1), (weights * nll).sum(1)]
    columns = torch.stack([torch.ones_like(count), count, *losses], 1) * (count > 0)[:, None]
    return torch.zeros(BINS, 5, dtype=torch.float64, device=count.device).index_add(0, bin_, columns)


def weight_sums(weights: Tensor, masked: Tensor) -> Tensor:
    """[3] float64: Σ w, Σ w², number of masked tokens, over this rank."""
    weights = weights.double()
    return torch.stack([weights.sum(), (weights**2).sum(), masked.sum().double()])


def summary(rates: Tensor, weights: Tensor, normaliser: float = 1.0) -> dict[str, Any]:
    """Figures for the log from the sums over all ranks.

    Returns:
        "weight_ess": effective sample size of the token weights, (Σ w)² / Σ w², as a share of the tokens.
        "by_rate": lists by bin of the masked share, ascending: "rows", "loss" (nats a masked token),
        "gradient" (root of the mean squared length of a row's gradient at the hidden states) and "part" (of the loss,
        which is their sum); None for an empty bin, but parts are 0.
    """
    total, squares, tokens = weights.tolist()
    rows, masked, nll, gradient, part = rates.T.tolist()
    return {
        "weight_ess": total**2 / (squares * tokens) if squares > 0 else 0.0,
        "by_rate": {
            "rows": [int(r) for r in rows],
            "loss": [n / m if m else None for n, m in zip(nll, masked, strict=True)],
            "gradient": [(g / r) ** 0.5 if r else None for g, r in zip(gradient, rows, strict=True)],
            "part": [p / normaliser for p in part],
        },
    }

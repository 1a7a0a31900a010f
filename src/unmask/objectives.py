"""Objectives: how is each masked token's loss weighted?

The loss of a step is Σ weight · nll / Z over all rows of the *global* batch. An objective gives both as
functions of the drawn batch alone, so Z is known before the forward, and neither loss nor gradient depends
on how the batch is split over ranks and micro-batches. docs/estimators.md derives each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, Scores
from unmask.config import ours, require
from unmask.fitted_times import is_fitted


class Objective:
    """Base of the objectives. A new one defines `weights` and `normaliser`.

    Attributes:
        reads: statistics of `Scores`, besides nll and log-confidence, that `reweight` and `sharpness` want. None: the
            weights do not depend on the model. Otherwise the head makes its logits twice, first for these.
    """

    reads: ClassVar[tuple[str, ...] | None] = None

    def weights(self, batch: MaskedBatch) -> Tensor:
        """[B, L] float32 weight of each masked token's nll, where the rows are; 0 where nothing is masked."""
        raise NotImplementedError

    def normaliser(self, batch: MaskedBatch) -> Tensor:
        """This batch's contribution to Z, a float64 scalar on the CPU; those of micro-batches and ranks add up."""
        raise NotImplementedError

    def check(self, masking: Any) -> None:
        """Raise ValueError if the objective cannot use batches of this masking config."""

    def reweight(self, batch: MaskedBatch, scores: Scores) -> Tensor:
        """[B, L] factors on the weights, from the model's scores of the same forward; no gradient runs through them.

        A row's factors must depend on that row alone: micro-batches cut between rows.
        """
        return torch.ones_like(scores.log_confidence)

    def sharpness(self, batch: MaskedBatch, scores: Scores) -> Tensor | None:
        """[B, L] share of each prediction's entropy, times the token's weight, that is added to the loss; or None."""
        return None


def _total(flags: Tensor) -> Tensor:
    """How many are true, as a float64 scalar on the CPU."""
    return flags.sum().cpu().double()


def _importance(count: Tensor, batch: MaskedBatch) -> Tensor:
    """Σ count · importance over rows [B], as a float64 scalar on the CPU, in one copy from the device."""
    return (count * batch.clean.weight).cpu().double().sum()


class _WithoutDensity(Objective):
    """Base of the objectives that leave out the weight 1 / (rate · density)."""

    def check(self, masking: Any) -> None:
        """Refuse rates fitted to the model, and causal rows: 1 / (rate · density) alone is right for them."""
        time = getattr(masking, "time", None)
        if is_fitted(time):
            raise ValueError(
                f"{self} leaves out the weight 1 / density that {time} is fitted for: noisy rates would be trained "
                "more and not made up for. Use objective ELBO, or a fixed time distribution (Uniform, Bell, Clipped)"
            )
        if share := getattr(masking, "causal", 0):
            raise ValueError(
                f"{self} would weigh causal rows by their many blocks or masks, and not by their share of {share}: "
                "use objective ELBO, or causal=0"
            )


@dataclass(frozen=True)
class RowMean(_WithoutDensity):
    """Mean over a row's masked tokens, then over the rows that have one (PUMA's loss, arXiv 2602.10314).

    With `ExactCount` and uniform t it is, row by row, an unbiased estimate of the ELBO per L_eff; with anything else,
    complementary pairs among it, it is a weighted cross-entropy with the same minimiser, and no likelihood bound.
    Where rows are cut into blocks, each block of each row counts as a row.
    """

    def weights(self, batch: MaskedBatch) -> Tensor:
        """1 / (number of masked tokens of the row's block), times the row's importance."""
        count, block = _masked_by_block(batch)
        return batch.masked * (batch.clean.weight[:, None] / count.clamp(min=1)).float().gather(1, block)

    def normaliser(self, batch: MaskedBatch) -> Tensor:
        """Importance of the rows (blocks of rows) with at least one masked token: their number, if drawn evenly."""
        return _importance((_masked_by_block(batch)[0] > 0).sum(1), batch)


def block_of(batch: MaskedBatch) -> Tensor:
    """[B, L] int64 block of each position; one a row where there are no blocks."""
    return torch.zeros_like(batch.clean.tokens) if batch.block is None else batch.block


def count_by_block(flags: Tensor, block: Tensor) -> Tensor:
    """[B, L] how many of the flags [B, L] each of a row's blocks has, by the number of the block."""
    return torch.zeros_like(block).scatter_add(1, block, flags.long())


def _masked_by_block(batch: MaskedBatch) -> tuple[Tensor, Tensor]:
    """[B, L] masked tokens in each of a row's blocks (at most L of them), and block of each position; one if none."""
    block = block_of(batch)
    return count_by_block(batch.masked, block), block


@dataclass(frozen=True)
class MaskedMean(_WithoutDensity):
    """Mean over all masked tokens of the batch: no 1/t weight (the bell recipe, arXiv 2605.13026).

    A ratio estimator (its denominator is random), so biased by O(1/batch) for the ratio of expectations.
    """

    def weights(self, batch: MaskedBatch) -> Tensor:
        """1 for each masked token, times the row's importance."""
        return batch.masked * batch.clean.weight[:, None].float()

    def normaliser(self, batch: MaskedBatch) -> Tensor:
        """Importance of the masked tokens, each its row's: their number, where rows are drawn evenly."""
        return _importance(batch.masked.sum(1), batch)


@dataclass(frozen=True)
class InverseRate(Objective):
    """Each masked token weighs 1 / (rate · density), whatever the rates depend on: no claim is made.

    For rules whose rates look at hidden tokens (`Delimiters`); for all others it is the `ELBO`, unchecked.
    """

    def weights(self, batch: MaskedBatch) -> Tensor:
        """1 / (rate · density), times the row's importance."""
        if batch.rate is None or batch.density is None:
            raise ValueError(
                f"{type(self).__name__} needs the density of what was drawn, and this process cannot state it "
                "(progressive unmasking); train with RowMean or MaskedMean, and measure likelihood with "
                "IndependentMasking"
            )
        weight = (1 / (batch.rate * batch.density)).float().to(batch.masked.device)
        return torch.where(batch.masked, weight * batch.clean.weight[:, None], 0.0)

    def normaliser(self, batch: MaskedBatch) -> Tensor:
        """Number of maskable tokens, Σ L_eff: rows that drew no mask count too.

        Where rows are drawn unevenly it is B times the data set's mean L_eff: the drawn rows' own sum would
        depend on the draw, and bias the ratio.
        """
        expected = batch.clean.expected_length
        return _total(batch.clean.maskable) if expected is None else expected.sum()

    def check(self, masking: Any) -> None:
        """Refuse a masking without a density."""
        if not masking.has_density:
            raise ValueError(
                f"{type(self).__name__} cannot use {masking}: it cannot state the density of what it draws. Use "
                "objective RowMean, or IndependentMasking"
            )


@dataclass(frozen=True)
class ELBO(InverseRate):
    """Unbiased estimate of the negative ELBO in nats per maskable token (docs/estimators.md).

    Each masked token weighs 1 / (rate · density), corrected for every time distribution; refuses processes
    that cannot state a density (PUMA), whose rates look at hidden tokens (Delimiters) or do not cover (low, 1].

    Attributes:
        low: smallest rate. Above 0 the bound's integral is taken over (low, 1] alone, as MDLM (arXiv 2406.07524) and
            LLaDA (arXiv 2502.09992) do from 0.001: the slice below it, `left_out`, is missing.
    """

    low: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.low < 1, f"ELBO: low is a rate in [0, 1), got {self.low}")

    @property
    def left_out(self) -> str:
        """What of the bound is missing, in words; empty where nothing is."""
        return f" without the slice (0, {self.low:g}] of rates" if self.low else ""

    def check(self, masking: Any) -> None:
        """Refuse a masking without a density, one that peeks, or whose rates are not those of (low, 1]."""
        super().check(masking)
        if masking.peeks:
            raise ValueError(
                f"ELBO cannot use {masking}: its mask rates depend on the hidden tokens, so a mask tells of them and "
                "there is no likelihood bound. Train with InverseRate or MaskedMean"
            )
        if tuple(masking.support) != (self.low, 1.0):
            low, high = masking.support
            other = (
                f" If the slice (0, {low:g}] may be left out, say so: ELBO(low={low:g})" if low else " Or use ELBO()"
            )
            named = other if high == 1 else ""
            raise ValueError(
                f"{self} needs mask rates over all of ({self.low:g}, 1], but {masking} draws ({low:g}, {high:g}]: "
                "the bound would silently lose the rest, or be another. Use MaskedMean or RowMean, or a time "
                f"distribution with that support.{named}"
            )


ours(ELBO, InverseRate, MaskedMean, RowMean)

"""Mask rules: given a rate t, which positions? Pure functions of uniform numbers.

A rule masks the positions whose uniform number is small. So feeding 1 - u instead of u gives the mirrored
mask of MIRROR (arXiv 2511.18159), {u > 1 - t}, for every rule, from the same field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.config import ours
from unmask.times import TimeDistribution


class MaskRule:
    """Base of the mask rules. A new one defines `rate_and_density`, and `choose` where positions hang together.

    Attributes:
        peeks: whether its rates depend on the tokens that it may hide. Then a mask tells of the token under it, and
            there is no likelihood bound: `ELBO` refuses.
        by_token: whether rates are [B, L], each position masked by itself where u < rate (`unmask.token_rates`).
        has_complement: whether `complement_density` is defined, so that rows may come in complementary pairs.
    """

    peeks: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    has_complement: ClassVar[bool] = False

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Values of t in (0, 1) at which a rate is not smooth; quadrature splits there."""
        return ()

    def rate_and_density(self, t: Tensor, clean: TokenBatch, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """Return the probability of being masked, and the density of that rate.

        Args:
            t: [B] float64 drawn rates.
            clean: B rows.
            time: the distribution that t was drawn from.

        Returns:
            rate and density, both [B, 1], or [B, L] where positions differ. A masked token's ELBO weight is always
            1 / (rate · density).
        """
        raise NotImplementedError

    def choose(self, uniform: Tensor, rate: Tensor, maskable: Tensor) -> Tensor:
        """Return the masked positions: each by itself, where u < rate, unless a rule says otherwise.

        Args:
            uniform: [B, L] in (0, 1).
            rate: [B, 1] or [B, L], as returned by `rate_and_density`.
            maskable: [B, L].

        Returns:
            [B, L] bool, a subset of `maskable`.
        """
        return (uniform < rate) & maskable

    def complement_density(self, rate: Tensor, clean: TokenBatch, time: TimeDistribution) -> Tensor:
        """Density of either rate of a complementary pair, `rate` [B, 1] and 1 - `rate`: the mean of the two."""
        raise NotImplementedError

    def complement_support(self, low: float, high: float) -> tuple[float, float]:
        """The interval that t in (low, high] and 1 - t cover together; (low, high) itself where they leave a gap."""
        return (min(low, 1 - high), max(high, 1 - low)) if low <= 0.5 <= high else (low, high)


@dataclass(frozen=True)
class Bernoulli(MaskRule):
    """Each maskable position is masked with probability t, independently. A row may get no mask: legal."""

    has_complement: ClassVar[bool] = True

    def rate_and_density(self, t: Tensor, clean: TokenBatch, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """rate = t, density = p(t)."""
        return t[:, None], time.density(t)[:, None]

    def complement_density(self, rate: Tensor, clean: TokenBatch, time: TimeDistribution) -> Tensor:
        """(p(t) + p(1 - t)) / 2."""
        return (time.density(rate) + time.density(1 - rate)) / 2


@dataclass(frozen=True)
class ExactCount(MaskRule):
    """Exactly n = ⌈t · L_eff⌉ maskable positions, every subset of that size alike."""

    has_complement: ClassVar[bool] = True

    def rate_and_density(self, t: Tensor, clean: TokenBatch, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """rate = n / L_eff, density = L_eff · P(n), P(n) = F(n/L_eff) - F((n-1)/L_eff)."""
        length = _lengths(clean, t)
        # A rate of a grid, as 23/30, times a length may be rounded to just above a whole count.
        count = (t[:, None] * length * (1 - 2**-51)).ceil().clamp(min=1)
        return count / length, length * _probability(count, length, time)

    def choose(self, uniform: Tensor, rate: Tensor, maskable: Tensor) -> Tensor:
        """The n positions with the smallest uniform numbers."""
        count = (rate[:, :1] * maskable.sum(1, keepdim=True)).round().long()
        return smallest(uniform, maskable, count)

    def complement_density(self, rate: Tensor, clean: TokenBatch, time: TimeDistribution) -> Tensor:
        """L_eff · (P(n) + P(L_eff - n)) / 2, with P(0) = 0."""
        length = _lengths(clean, rate)
        count = (rate * length).round()
        return length * (_probability(count, length, time) + _probability(length - count, length, time)) / 2

    def complement_support(self, low: float, high: float) -> tuple[float, float]:
        """As for any rule, but counts leave gaps that rates do not.

        No complement has n = L_eff, so t must come up to 1; and for low = 1/2 neither of a pair has n = L_eff / 2.
        """
        return super().complement_support(low, high) if low < 0.5 and high == 1 else (low, high)


def _lengths(clean: TokenBatch, like: Tensor) -> Tensor:
    """[B, 1] L_eff; at least 1, as a block may have nothing to mask: any finite rate will do there."""
    return clean.effective_length[:, None].to(like.dtype).clamp(min=1)


def _probability(count: Tensor, length: Tensor, time: TimeDistribution) -> Tensor:
    """P(n) = F(n/L_eff) - F((n-1)/L_eff)."""
    return time.cdf(count / length) - time.cdf((count - 1) / length)


def smallest(value: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """Return the `count` [B, 1] eligible positions with the smallest value [B, L], as [B, L] bool.

    Ties go to the lower position. Rows with fewer eligible positions give all they have.
    """
    order = value.masked_fill(~eligible, torch.inf).argsort(dim=1, stable=True)
    # An eligible infinite value ties with the ineligible ones, so these go behind in a second, stable pass.
    order = order.gather(1, eligible.gather(1, order).argsort(dim=1, descending=True, stable=True))
    position = torch.arange(value.shape[1], device=value.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, position)
    return (rank < count) & eligible


ours(Bernoulli, ExactCount)

"""Mask rules: given a rate t, which positions? Pure functions of uniform numbers.

A rule masks the positions whose uniform number is small. So feeding 1 - u instead of u gives the mirrored
mask of MIRROR (arXiv 2511.18159), {u > 1 - t}, for every rule, from the same field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.config import ours
from unmask.times import TimeDistribution


class MaskRule:
    """Base of the mask rules. A new one defines both methods."""

    def rate_and_density(self, t: Tensor, effective_length: Tensor, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """Return the expected masked share and the density of the draw.

        Args:
            t: [...] float64 drawn rates.
            effective_length: [...] int64, L_eff.
            time: the distribution that t was drawn from.

        Returns:
            rate and density, both of t's shape. A masked token's ELBO weight is 1 / (rate · density).
        """
        raise NotImplementedError

    def choose(self, uniform: Tensor, rate: Tensor, maskable: Tensor) -> Tensor:
        """Return the masked positions.

        Args:
            uniform: [B, L] in (0, 1).
            rate: [B, 1] or [B, L], as returned by `rate_and_density`.
            maskable: [B, L].

        Returns:
            [B, L] bool, a subset of `maskable`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Bernoulli(MaskRule):
    """Each maskable position is masked with probability t, independently. A row may get no mask: legal."""

    def rate_and_density(self, t: Tensor, effective_length: Tensor, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """rate = t, density = p(t)."""
        return t, time.density(t)

    def choose(self, uniform: Tensor, rate: Tensor, maskable: Tensor) -> Tensor:
        """u < t."""
        return (uniform < rate) & maskable


@dataclass(frozen=True)
class ExactCount(MaskRule):
    """Exactly n = ⌈t · L_eff⌉ maskable positions, every subset of that size alike."""

    def rate_and_density(self, t: Tensor, effective_length: Tensor, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """rate = n / L_eff, density = L_eff · (F(n/L_eff) - F((n-1)/L_eff))."""
        length = effective_length.to(t.dtype).clamp(
            min=1
        )  # a block may have nothing to mask: any finite rate will do
        count = (t * length).ceil().clamp(min=1)
        density = length * (time.cdf(count / length) - time.cdf((count - 1) / length))
        return count / length, density

    def choose(self, uniform: Tensor, rate: Tensor, maskable: Tensor) -> Tensor:
        """The n positions with the smallest uniform numbers."""
        count = (rate[:, :1] * maskable.sum(1, keepdim=True)).round().long()
        return smallest(uniform, maskable, count)


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

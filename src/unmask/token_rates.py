"""Mask rules whose rate differs by token; each position is masked by itself, where u_i < r_i(t).

*Rates from what is visible* (`TokenRates`): positions, the prompt, numbers that a data set carries. Position i is
masked with probability r_i(t) = 1 - (1 - t)^(c_i). Seen backwards from t = 1, positions are then revealed in a
random order that favours small c_i, and the order looks at no hidden token. So there is a likelihood bound, that of
this law of orders, and a masked token's weight in it is r_i'(t) / r_i(t): again 1 / (rate · density), as the density
of the drawn rate r_i(t) is p(t) / r_i'(t). docs/estimators.md derives it.

*Rates from what is hidden* (`Delimiters`): a mask then tells of the token under it, the minimiser moves, and there
is no bound. They are allowed, and `ELBO` refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.config import ours, require
from unmask.masks import MaskRule
from unmask.times import TimeDistribution


def known_tokens(part: Any) -> list[int]:
    """The ids that a rule's or objective's `tokens` lists; ValueError while it names a text."""
    found = [token for token in part.tokens if isinstance(token, int)]
    if len(found) < len(part.tokens):
        raise ValueError(
            f"{part} names tokens by their text: a run looks them up in its tokenizer; elsewhere give "
            "tokenizer.named(tokens)"
        )
    return found


class TokenRates(MaskRule):
    """Base of the rules with rates r_i(t) = 1 - (1 - t)^(c_i). A new one defines `exponents`.

    Where c_i < 1 the weight r_i' / r_i of the ELBO grows without bound as t nears 1, like (1 - t)^(c_i - 1); below
    1/2 its variance is infinite under uniform rates. The objectives without a 1/t weight do not mind.
    """

    by_token: ClassVar[bool] = True

    def exponents(self, clean: TokenBatch) -> Tensor:
        """[B, L] positive, up to a factor for each row; they must not depend on a maskable token."""
        raise NotImplementedError

    def rate_and_density(self, t: Tensor, clean: TokenBatch, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """r_i(t), with c_i of mean 1 over the row's maskable positions, and p(t) / r_i'(t)."""
        c = self.exponents(clean).to(t.dtype)
        mean = (c * clean.maskable).sum(1, keepdim=True) / clean.effective_length.clamp(min=1)[:, None]
        c = torch.where(clean.maskable, c / mean, 1.0)
        below = t.clamp(max=1 - 2**-53)  # where t has been rounded to 1, slopes are 0 or without bound
        slope = c * torch.exp((c - 1) * torch.log1p(-below)[:, None])
        return -torch.expm1(c * torch.log1p(-t)[:, None]), time.density(below)[:, None] / slope


@dataclass(frozen=True)
class HalfLife(TokenRates):
    """Rates by position: c_i doubles every `half_life` of a row's positions, so later tokens are masked sooner.

    At low rates rows then look as they do when text is written from left to right. The idea is Efficient-DLM's
    (arXiv 2512.14067); its formula is not known to us, and this form is ours.

    Attributes:
        half_life: as a share of the row's real positions; below 0: earlier tokens are masked sooner.
    """

    half_life: float = 1.0

    def __post_init__(self) -> None:
        require(
            abs(self.half_life) >= 0.05, f"half_life is a share of at least 0.05 either way, got {self.half_life}"
        )

    def exponents(self, clean: TokenBatch) -> Tensor:
        """2^(i / (half_life · real positions))."""
        place = torch.arange(clean.length, device=clean.tokens.device, dtype=torch.float64)
        return torch.exp2(place / (self.half_life * clean.attention.sum(1, keepdim=True).clamp(min=1)))


@dataclass(frozen=True)
class GIFT(TokenRates):
    """Rates by the uncertainty of each token before any of its row is seen (GIFT): c_i = β_i / mean β.

    β_i is the entropy of the prediction where all maskable positions are hidden, as the data set's column `guide`
    carries it (`unmask.add_entropies`). It depends on the prompt alone.

    Attributes:
        floor: smallest β as a share of the row's mean, in (0, 1]; it keeps certain tokens in training.
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.floor <= 1, f"floor is a share of the mean in (0, 1], got {self.floor}")

    def exponents(self, clean: TokenBatch) -> Tensor:
        """The guide, at least `floor` times its mean."""
        if clean.guide is None:
            raise ValueError("GIFT reads entropies from a column `guide`: make it with unmask.add_entropies")
        beta = clean.guide.clamp(min=0) * clean.maskable
        mean = beta.sum(1, keepdim=True) / clean.effective_length.clamp(min=1)[:, None]
        return torch.maximum(beta, self.floor * mean).clamp(min=1e-9)


@dataclass(frozen=True)
class Delimiters(MaskRule):
    """Importance sampling on answer delimiters (ISAD, arXiv 2511.18159): q_i = min(1, t + shift) for some tokens.

    A token whose id is listed is masked with q_i, any other with t; with `InverseRate` its loss is weighted by
    1 / (q_i · p(t)), as in the paper. That weight corrects for the token itself, but not for what the *other* masks
    tell of the tokens under them; so the minimiser moves wherever two masked tokens depend on one another.
    `unmask.testing.stationary` shows by how much.

    Attributes:
        tokens: the delimiters: ids, or texts ("####", "\\boxed") whose tokens a run looks up in its tokenizer.
        shift: Δ, in (0, 1).
    """

    peeks: ClassVar[bool] = True
    by_token: ClassVar[bool] = True

    tokens: tuple[int | str, ...]
    shift: float = 0.2

    def __post_init__(self) -> None:
        require(len(self.tokens) > 0, "Delimiters needs at least one token")
        require(0 < self.shift < 1, f"shift is a rate in (0, 1), got {self.shift}")

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Where min(1, t + shift) reaches 1."""
        return (1 - self.shift,)

    def rate_and_density(self, t: Tensor, clean: TokenBatch, time: TimeDistribution) -> tuple[Tensor, Tensor]:
        """rate = q_i(t); density = p(t), the paper's weight 1 / q_i under uniform rates."""
        known = torch.tensor(known_tokens(self), device=t.device)
        listed = torch.isin(clean.tokens, known)
        rate = (t[:, None] + self.shift * listed).clamp(max=1)
        return rate, time.density(t)[:, None].expand_as(rate)


ours(HalfLife, GIFT, Delimiters)

"""Objectives that weigh tokens anew: by what is visible around them, or by the model's own scores.

Each wraps another objective and multiplies its weights by a factor; Z stays. Factors from scores are computed in the
same forward, without gradient (`Objective.reweight`). Two questions decide what they do to training:

- A factor that depends on the visible state alone leaves every conditional where it was: the minimiser stays.
- One that depends on the hidden token itself (on its own probability, say) tilts the conditional that is learnt.

`unmask.testing.stationary` finds where training comes to rest, by enumeration; docs/estimators.md has the figures.

Where rows are cut into blocks, each block stands for a row: its tokens are compared with one another, and what is
visible is what the block sees. Scores of later blocks were made from its clean tokens, and would tell of hidden ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, Scores
from unmask.config import ours, require
from unmask.objectives import MaskedMean, Objective, block_of, count_by_block

Of = Literal["clean", "top"]


@dataclass(frozen=True)
class Reweighted(Objective):
    """Base of the objectives that multiply another's weights; on its own it changes nothing.

    Attributes:
        base: whose weights and Z.
    """

    base: Objective = field(default_factory=MaskedMean)

    def weights(self, batch: MaskedBatch) -> Tensor:
        """The base's."""
        return self.base.weights(batch)

    def normaliser(self, batch: MaskedBatch) -> Tensor:
        """The base's."""
        return self.base.normaliser(batch)

    def check(self, masking: Any) -> None:
        """Refuse what the base refuses."""
        self.base.check(masking)


@dataclass(frozen=True)
class PAPL(Reweighted):
    """Factor 1 + alpha · softmax(log p / temperature) over a row's masked tokens (planner-aware path learning).

    With `of` "clean", the paper's, p is the probability of the hidden token: likely tokens count more, and what is
    learnt is sharper than the data. With "top" it is that of the most probable token, which is what a confident
    sampler would reveal next: the factor looks at nothing hidden, and the minimiser stays.

    Attributes:
        alpha: strength, at least 0.
        temperature: of the softmax, greater than 0.
        of: whose probability.
    """

    reads: ClassVar[tuple[str, ...] | None] = ()

    alpha: float = 1.0
    temperature: float = 1.0
    of: Of = "clean"

    def __post_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be at least 0, got {self.alpha}")
        require(self.temperature > 0, f"temperature must be greater than 0, got {self.temperature}")

    def reweight(self, batch: MaskedBatch, scores: Scores) -> Tensor:
        """1 + alpha · softmax(log p / temperature)."""
        block = block_of(batch)
        logit = _log_p(scores, self.of).masked_fill(~batch.masked, -torch.inf)
        largest = torch.full_like(logit, -torch.inf).scatter_reduce(1, block, logit, "amax").gather(1, block)
        each = torch.where(batch.masked, ((logit - largest).double() / self.temperature).exp(), 0.0).to(logit)
        whole = torch.zeros_like(each).scatter_add(1, block, each).gather(1, block)
        return 1 + self.alpha * torch.where(batch.masked, each / whole, 0.0)


@dataclass(frozen=True)
class LIFT(Reweighted):
    """Easy tokens at high mask rates, hard ones at low rates: factor 1 + strength · (2r - 1) · (2e - 1).

    r is the masked share of the row, and e in [0, 1] the rank of the token's log p among the row's masked tokens, 1
    for the easiest. The factors of a row have the mean 1. LIFT's idea; its formula is not known to us, and this one
    is ours. With `of` "clean" ease is the hidden token's own probability, and the minimiser moves; with "top" it
    stays.

    Attributes:
        strength: in [0, 1].
        of: whose probability tells how easy a token is.
    """

    reads: ClassVar[tuple[str, ...] | None] = ()

    strength: float = 0.5
    of: Of = "clean"

    def __post_init__(self) -> None:
        require(0 <= self.strength <= 1, f"strength must be in [0, 1], got {self.strength}")

    def reweight(self, batch: MaskedBatch, scores: Scores) -> Tensor:
        """1 + strength · (2r - 1) · (2e - 1)."""
        block = block_of(batch)
        flags = batch.masked, batch.clean.maskable
        count, length = (count_by_block(each, block).gather(1, block) for each in flags)
        ease = _log_p(scores, self.of).masked_fill(~batch.masked, torch.inf)
        order = ease.argsort(dim=1, stable=True)  # then block by block, in this order in each
        order = order.gather(1, block.gather(1, order).argsort(dim=1, stable=True))
        sizes = count_by_block(torch.ones_like(block), block)
        harder = order.argsort(dim=1) - (sizes.cumsum(1) - sizes).gather(1, block)
        rank = torch.where(count > 1, harder.to(ease) / (count - 1).clamp(min=1), 0.5)
        rate = count / length.clamp(min=1)
        return torch.where(batch.masked, 1 + self.strength * (2 * rate - 1) * (2 * rank - 1), 1.0)


@dataclass(frozen=True)
class CAP(Reweighted):
    """Adds strength · entropy of the prediction wherever the most probable token is the right one (CAP, LLaDA2).

    The term sharpens what is right already, so that more tokens pass a threshold at once in decoding. Which tokens
    are right is known from the hidden token; the minimiser moves to sharper predictions, which is what it is for.

    Attributes:
        strength: of the term, at least 0.
    """

    reads: ClassVar[tuple[str, ...] | None] = ()

    strength: float = 0.1

    def __post_init__(self) -> None:
        require(self.strength >= 0, f"strength must be at least 0, got {self.strength}")

    def sharpness(self, batch: MaskedBatch, scores: Scores) -> Tensor:
        """`strength` where the most probable token is the clean one."""
        assert scores.nll is not None
        return self.strength * (scores.nll <= -scores.log_confidence)


@dataclass(frozen=True)
class CART(Reweighted):
    """Factor Σ_j p (1 - p)^(|i - j| - 1) / 2 over the visible positions j (CART, Dream): near context counts.

    It depends on the mask alone, so the minimiser stays.

    Attributes:
        p: of the geometric law, in (0, 1): the larger, the nearer.
    """

    p: float = 0.3

    def __post_init__(self) -> None:
        require(0 < self.p < 1, f"p must be in (0, 1), got {self.p}")

    def weights(self, batch: MaskedBatch) -> Tensor:
        """The base's, times the factor."""
        place = torch.arange(batch.clean.length, device=batch.masked.device)
        distance = (place[:, None] - place).abs()
        kernel = torch.where(distance > 0, self.p * (1 - self.p) ** (distance - 1.0) / 2, 0.0)
        visible = batch.clean.attention & ~batch.masked
        if batch.block is None and batch.clean.document is None:
            with torch.autocast(visible.device.type, enabled=False):  # which would round the factors
                return self.base.weights(batch) * (visible.float() @ kernel)
        seen = visible[:, None, :]  # [B, i, j]: position j from position i
        if (block := batch.block) is not None:
            before = batch.clean.attention[:, None, :] & (block[:, None, :] < block[:, :, None])
            seen = before | seen & (block[:, None, :] == block[:, :, None])
        if (document := batch.clean.document) is not None:
            seen = seen & (document[:, None, :] == document[:, :, None]).to(seen.device)
        return self.base.weights(batch) * (seen * kernel).sum(2)


@dataclass(frozen=True)
class SyRM(Reweighted):
    """alpha · the response's loss + (1 - alpha) · that of the prompt's syntax (SyRM, arXiv 2511.18159).

    For rows of `unmask.data.with_syntax`, which a run makes by itself: there the prompt's syntax tokens are maskable
    too, and the column `guide` is 1 at them. A masked position of the prompt is then known to hold syntax, which
    biases what is predicted there; the response's conditionals, given prompts that lack some of their syntax, are the
    data's.

    Attributes:
        alpha: in (0, 1].
        tokens: the syntax of a run's prompts: ids, or texts ("def", "<p>") whose tokens are looked up. They are not
            read where the rows have a column `guide` already.
    """

    alpha: float = 0.9
    tokens: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, f"alpha must be in (0, 1], got {self.alpha}")

    def weights(self, batch: MaskedBatch) -> Tensor:
        """The base's, times alpha or 1 - alpha."""
        if batch.clean.guide is None:
            raise ValueError("SyRM needs rows of unmask.data.with_syntax: there is no column `guide`")
        factor = torch.where(batch.clean.guide > 0, 1 - self.alpha, self.alpha).float()
        return self.base.weights(batch) * factor.to(batch.masked.device)


def _log_p(scores: Scores, of: Of) -> Tensor:
    if of == "top":
        return scores.log_confidence
    assert scores.nll is not None
    return -scores.nll


ours(CAP, CART, LIFT, PAPL, SyRM)

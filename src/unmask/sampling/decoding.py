"""How rows are decoded: every setting of the loop in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.batch import widest
from unmask.config import ours, positive_int, require
from unmask.policies import POLICIES, Policy, resolve


@dataclass(frozen=True)
class Decoding:
    """Which positions are revealed when, and how their tokens are drawn.

    A row without blocks is one block. Below, s is the size of a block (its maskable positions), and a step is a
    forward of the model; a row for which a step has nothing to do waits at no cost.

    Attributes:
        policy: reveal policy, by name or as a function.
        tokens_per_step: positions revealed in a block at each step (net of remasking), at least 1.
        steps: reveal each block in (at most) so many steps by `schedule`, instead of so many tokens a step.
        schedule: revealed share after step j of N: "linear" j/N; "cosine" 1 - cos(π/2 · j/N), few first (MaskGIT,
            arXiv 2202.04200). Counts are rounded up, so the totals are exact.
        threshold: reveal besides every position whose top probability exceeds this, in (0, 1), and at least one
            position a step.
        temperature: 0 takes the most probable token; above 0 draws from softmax(logits / temperature).
        top_p: draw from the smallest set of most probable tokens with at least this probability, in (0, 1].
        block_size: decode blocks of so many positions (block number = position // block_size) from left to right,
            the next one when the last is full. None: no blocks.
        causal_blocks: a block sees itself and earlier blocks alone, as in a model trained block by block. Otherwise
            later positions are visible, prompt or mask.
        remasking: η of ReMDM (arXiv 2503.00307): each token revealed in the current block is masked again with
            probability σ at each step, and as many more are revealed in the same step. 0 for none. Where more would
            be than the schedule leaves masked, the rest stay: late steps mask somewhat fewer than σ says. Given
            tokens are never masked.
        remasking_rule: with α the revealed share before the step, α' after it and σ_max = min(1, (1 - α') / α):
            "cap", σ = min(η, σ_max), or "rescale", σ = η · σ_max. These are the paper's ReMDM-cap and
            ReMDM-rescale, on the block's own shares. Both are 0 at the last step, so decoding ends.

    Raises:
        ValueError: for settings outside their range, or that would have no effect.
    """

    policy: str | Policy = "confidence"
    tokens_per_step: int = 1
    steps: int | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    threshold: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    block_size: int | None = None
    causal_blocks: bool = False
    remasking: float = 0.0
    remasking_rule: Literal["cap", "rescale"] = "cap"

    def __post_init__(self) -> None:
        resolve(self.policy, POLICIES)
        positive_int("tokens_per_step", self.tokens_per_step)
        for name in ("steps", "block_size"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        require(self.temperature >= 0, f"temperature must be at least 0, got {self.temperature}")
        require(0 <= self.remasking <= 1, f"remasking is a probability in [0, 1], got {self.remasking}")
        require(0 < self.top_p <= 1, f"top_p is a probability in (0, 1], got {self.top_p}")
        if self.threshold is not None:
            require(0 < self.threshold < 1, f"threshold is a probability in (0, 1), got {self.threshold}")
        require(self.steps is None or self.tokens_per_step == 1, "give steps or tokens_per_step, not both")
        require(self.schedule == "linear" or self.steps is not None, f"schedule '{self.schedule}' needs steps")
        require(self.top_p == 1 or self.temperature > 0, "top_p has no effect at temperature 0: set a temperature")
        require(self.block_size is not None or not self.causal_blocks, "causal_blocks needs a block_size")

    def target(self, clock: Tensor, revealed: Tensor, size: Tensor) -> Tensor:
        """How many positions of its block each row has revealed after the step, [B] int64.

        Args:
            clock: [B] steps that the block has had.
            revealed: [B] positions of the block revealed so far.
            size: [B] maskable positions of the block.
        """
        if self.steps is None:
            goal = revealed + self.tokens_per_step
        else:
            progress = ((clock + 1).double() / self.steps).clamp(max=1)
            share = progress if self.schedule == "linear" else 1 - (torch.pi / 2 * progress).cos()
            goal = (size * share - 1e-9).ceil().long()  # 3 · (1/3) is 3 positions, not 4
        if self.threshold is not None:
            goal = torch.maximum(goal, revealed + 1)
        return torch.minimum(goal, size)

    def remasking_probability(self, revealed: Tensor, target: Tensor, size: Tensor) -> Tensor:
        """σ, [B] float64: probability of a revealed position to be masked again at a step.

        `revealed` and `target` [B] count positions of the block before and after it, of `size` [B].
        """
        highest = ((size - target) / revealed.clamp(min=1).double()).clamp(max=1)
        return highest.clamp(max=self.remasking) if self.remasking_rule == "cap" else self.remasking * highest


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Draw a token from each row of logits [N, V] by inverting its CDF at uniform [N]: one number a position.

    The distribution is softmax(logits / temperature), cut to its nucleus of mass `top_p`, in float64 where the
    logits' device has it.
    """
    logits = logits.to(widest(logits.device))
    logits = logits - logits.amax(-1, keepdim=True)  # or a tiny temperature makes them infinite, then NaN
    cdf = nucleus((logits / temperature).softmax(-1), top_p).cumsum(-1)
    total = cdf[:, -1:]
    # Below the total, so that the index is that of a token with some probability.
    value = torch.minimum(uniform[:, None].to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, value, right=True)[:, 0]


def nucleus(probability: Tensor, top_p: float) -> Tensor:
    """Set to 0 what is outside the smallest set of most probable tokens with mass of at least top_p.

    Args:
        probability: [..., V]; it is not normalised again. Ties keep the lower token.
        top_p: in (0, 1]; 1 keeps everything.
    """
    if top_p == 1:
        return probability
    ordered, token = probability.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0)
    return torch.zeros_like(probability).scatter_(-1, token, kept)


ours(Decoding)

"""The law of PUMA's teacher-forced chain (arXiv 2602.10314), unit by unit: pure functions of the unit's state.

A unit is whatever is unmasked by itself: a whole row, or one block of a row with a row number of its own. Its state
is what is revealed of it, and its stage. Nothing here knows of a stream, a batch or a pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import Scores, TokenBatch
from unmask.masks import smallest
from unmask.policies import Policy, resolve, stored, top
from unmask.times import TimeDistribution


@dataclass(frozen=True)
class Chain:
    """How units are unmasked, stage by stage.

    Stage j of K has the mask rates between two quantiles of `time`: its revealed ratio is 1 - Q(1 - u) with u in
    [j/K, (j+1)/K). For `Uniform` that is [j/K, (j+1)/K) itself, the paper's chain.

    Attributes:
        stages: K.
        policy: which positions are revealed first, as in `unmask.policies`.
        time: distribution of the mask rates that a chain passes through; not one that learns.
        threshold: fast-forward: also reveal what the model is surer of than this; None: off.
        seed: of the noise.
        first_stages: K at the start of the run. Stages count anew when K changes, and so does their noise.
    """

    stages: int
    policy: str | Policy
    time: TimeDistribution
    threshold: float | None
    seed: int
    first_stages: int

    @cached_property
    def rank(self) -> Policy:
        """The policy as a function."""
        return resolve(self.policy)

    def entry(self, units: TokenBatch, stage: Tensor) -> Tensor:
        """[N, L] what is revealed of units that enter at `stage` [N]: a random choice of as many as it says.

        A stored order begins with its first ones instead: what it says of later ones may depend on these.
        """
        first = self.uniforms(units, units.length, noise.Purpose.MASK)
        if self.rank is stored:
            nothing = Scores(torch.zeros_like(first), guide=units.guide)
            first = -self.rank(nothing, first)
        return smallest(first, units.maskable, self._target(units, stage)[:, None])

    def advance(
        self, units: TokenBatch, revealed: Tensor, stage: Tensor, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move on by one stage: reveal what the policy ranks first, and what passes the threshold.

        Args:
            units: [N, L].
            revealed: [N, L] what is revealed of them.
            stage: [N] their stages.
            scores: [N, L] of the positions that are masked.

        Returns:
            The new revealed [N, L] and stage [N], and [N] how many tokens the threshold alone revealed.

        Raises:
            ValueError: for a policy that gives NaN.
        """
        masked = units.maskable & ~revealed
        length, following = units.effective_length, stage + 1
        # At least one token, so that no unit lingers where a stage is less than a token wide (L_eff ≤ K).
        count = (self._target(units, following) - (length - masked.sum(1))).clamp(min=1)
        draws = self.uniforms(units, units.length, noise.Purpose.REVEAL, stage)
        shown = replace(scores, nll=None, guide=units.guide)  # no policy may peek
        reveal = top(self.rank(shown, draws), masked, count)
        extra = torch.zeros_like(following)
        if self.threshold is not None:
            sure = masked & (scores.log_confidence > math.log(self.threshold))
            extra = (sure & ~reveal).sum(1)
            reveal |= sure
        revealed = revealed | reveal
        # A fast-forwarded unit has overtaken its stage: find it anew, but never behind the next one, by whatever
        # the law's cdf is off.
        overtaken = torch.maximum(following, self._stage_of(units, revealed))
        return revealed, torch.where(extra > 0, overtaken, following), extra

    def ended(self, units: TokenBatch, revealed: Tensor, stage: Tensor) -> Tensor:
        """[N] bool, units whose chain has ended; one without a maskable position begins so."""
        return (stage >= self.stages) | ((units.maskable & revealed).sum(1) > self._most(units))

    def restaged(self, units: TokenBatch, revealed: Tensor, ended: Tensor) -> Tensor:
        """[N] the stage of each unit's revealed ratio, for units whose K has changed; those that ended stay so."""
        stage = self._stage_of(units, revealed).clamp(max=self.stages - 1)
        return torch.where(ended, self.stages, stage)

    def uniforms(self, units: TokenBatch, length: int, purpose: noise.Purpose, stage: Tensor | None = None) -> Tensor:
        """[N, length] uniform numbers for one purpose of units: all the randomness that a chain has.

        Numbers are drawn once for each stage; after a change of K stages count anew.
        """
        salt: int | Tensor = 0
        if stage is not None:
            salt = (stage + ((self.stages - self.first_stages) << 32))[:, None]
        return noise.uniforms(self.seed, units.row, units.draw, length, purpose=purpose, salt=salt)

    def _target(self, units: TokenBatch, stage: Tensor) -> Tensor:
        """[N] tokens to reveal by `stage`: round(r · L_eff), short of the chain's end by a token at least."""
        within = self.uniforms(units, 1, noise.Purpose.STAGE, stage)[:, 0]
        level = ((stage + within) / self.stages).clamp(max=1.0)
        ratio = 1 - self.time.quantile(1 - level)
        return torch.minimum((ratio * units.effective_length).round().long(), self._most(units))

    def _most(self, units: TokenBatch) -> Tensor:
        """[N] most tokens that are revealed of a unit whose chain runs: more masked than the support's low end."""
        # In float64, with a margin: a share that is the end itself must not come out above it.
        return ((1 - self.time.support[0]) * units.effective_length.double() - 1e-9).ceil().long() - 1

    def _stage_of(self, units: TokenBatch, revealed: Tensor) -> Tensor:
        """[N] the stage that holds the unit's revealed ratio."""
        ratio = (units.maskable & revealed).sum(1).double() / units.effective_length.clamp(min=1)
        # The margin keeps a ratio that is exactly a boundary from falling below it.
        return (self.stages * (1 - self.time.cdf(1 - ratio)) + 1e-9).floor().long()

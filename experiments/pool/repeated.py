"""The control of PUMA's pool: rows come back as its chains do, but every visit draws a mask of its own.

It separates "the same few rows in consecutive steps" from everything that is PUMA's own: no policy, no chain. With
pool="batch" a row is trained K times in a row; with a larger pool its K visits lie apart; there are as many of both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import ProgressiveUnmasking, Scores, TokenBatch
from unmask.masks import smallest
from unmask.noise import Purpose
from unmask.processes import Chain


@dataclass(frozen=True)
class RepeatedRows(ProgressiveUnmasking):
    """Each row is trained K times, at the rates of a chain's stages, each time under an independent mask."""

    policy: str = "random"

    def chain(self, stages: int, seed: int) -> Chain:
        """A chain that forgets what it had revealed."""
        return _Forgetful(**vars(super().chain(stages, seed)))


class _Forgetful(Chain):
    def advance(
        self, units: TokenBatch, revealed: Tensor, stage: Tensor, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        uniform = self.uniforms(units, units.length, Purpose.REVEAL, stage)
        fresh = smallest(uniform, units.maskable, self._target(units, stage + 1)[:, None])
        return fresh, stage + 1, torch.zeros_like(stage)

"""Progressive unmasking (PUMA, arXiv 2602.10314): train along the model's own teacher-forced unmasking chain.

A pool holds one chain for each row of the batch. Each step trains on the pool as it stands; then the
policy, fed with the scores of that same forward, chooses which masked positions to reveal next, and their
clean tokens are revealed. Chains that end are replaced by new rows. So masks seen in training are those met
at inference, at no extra forward.

Why it is sound: the probability of choosing a set depends on the visible state alone, so Bayes' rule cancels
it, and the posterior of a masked token given the visible ones stays the data's (the paper's Proposition 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.stream import RowStream
from unmask.distributed import gather_counts
from unmask.masks import smallest
from unmask.policies import Policy, needs_of, resolve, top
from unmask.processes.base import local_size


@dataclass(frozen=True)
class ProgressiveUnmasking:
    """PUMA's teacher-forced chain with batch streaming.

    Attributes:
        stages: K. Stage j trains at a revealed ratio in [j/K, (j+1)/K), up to rounding to whole tokens.
        policy: reveal policy, a name in `unmask.policies` or a function (scores, noise) -> priority [B, L].
        threshold: fast-forward: also reveal every masked position whose top probability exceeds this; in
            (0, 1). None: off.
        until: replace a row once this share of it is revealed, in (0, 1]; 1 is the paper's chain.
    """

    stages: int = 8
    policy: str | Policy = "confidence"
    threshold: float | None = None
    until: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 1:
            raise ValueError(f"stages must be a positive integer, got {self.stages!r}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is a probability in (0, 1), or None for no fast-forward; got {self.threshold}"
            )
        if not 0 < self.until <= 1:
            raise ValueError(f"until is a share of revealed tokens in (0, 1], got {self.until}")
        resolve(self.policy)

    @property
    def has_density(self) -> bool:
        """Never: the law of a chain's masks depends on the model and is intractable."""
        return False

    @property
    def support(self) -> tuple[float, float]:
        """A chain runs from fully masked to the end given by `until`."""
        return 1 - self.until, 1.0

    @property
    def live_stages(self) -> int:
        """Stages that a row can be drawn in before `until` ends its chain."""
        return max(1, math.ceil(self.stages * self.until - 1e-9))

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ProgressiveProcess:
        """Start with a pool of fresh rows whose first stages are spread evenly.

        `batch_size` counts the rows (forwards) of a step over all ranks together.
        """
        return ProgressiveProcess(self, rows, batch_size, seed, device)


class ProgressiveProcess:
    """The running chains: a pool of rows, which of their tokens are revealed, and each row's stage."""

    def __init__(
        self,
        config: ProgressiveUnmasking,
        rows: RowStream,
        batch_size: int,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        local = local_size(batch_size, rows.world_size)
        if rows.importance is not None:
            raise ValueError("progressive unmasking keeps rows for many steps: its stream cannot draw by importance")
        self.config, self.rows, self.seed, self.device = config, rows, seed, device
        self.policy = resolve(config.policy)
        slot = torch.arange(local, device=device) + rows.rank * local
        self.stage = slot * config.live_stages // batch_size
        self.clean = rows.take(local).to(device)
        self.revealed = self._entry(self.clean, self.stage)
        self.metrics: dict[str, float] = {}
        self._awaits_scores = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What the policy reads, and the confidence where fast-forward compares it."""
        wanted = needs_of(self.policy)
        if self.config.threshold is not None and "log_confidence" not in wanted:
            wanted = ("log_confidence", *wanted)
        return wanted

    @property
    def masked(self) -> Tensor:
        """[B, L] positions of the pool that are still masked."""
        return self.clean.maskable & ~self.revealed

    def draw(self) -> MaskedBatch:
        """Return the pool as it stands.

        Raises:
            RuntimeError: where the scores of the last draw were never given to `observe`: the chains would
                stand still, and training would see the same masks for ever.
        """
        if self._awaits_scores:
            raise RuntimeError("draw() was called twice without observe(scores) between: the chains cannot advance")
        self._awaits_scores = True
        masked = self.masked
        rate = masked.sum(1, keepdim=True).double() / self.clean.effective_length[:, None]
        return MaskedBatch(self.clean, masked, rate, None, group=self.clean.row)

    def observe(self, scores: Scores | None) -> None:
        """Advance every chain by one stage, with the scores of the last draw; replace the rows that end.

        Args:
            scores: [B, L] for all rows of the last draw, in their order.

        Raises:
            ValueError: for missing or misshapen scores, or a policy that gives NaN.
        """
        if not self._awaits_scores:
            raise RuntimeError("observe() takes the scores of a draw, and there was no draw() since the last")
        config, masked, length = self.config, self.masked, self.clean.effective_length
        if scores is None or scores.log_confidence.shape != masked.shape:
            got = None if scores is None else tuple(scores.log_confidence.shape)
            raise ValueError(
                f"progressive unmasking needs the scores of all {tuple(masked.shape)} positions, got {got}"
            )

        # At least one token, so that no row lingers where a stage is less than a token wide (L_eff ≤ K).
        following = self.stage + 1
        count = (self._target(self.clean, following) - (length - masked.sum(1))).clamp(min=1)
        salt = self.stage[:, None]
        draws = noise.uniforms(
            self.seed,
            self.clean.row,
            self.clean.draw,
            self.clean.length,
            purpose=noise.Purpose.REVEAL,
            salt=salt,
        )
        reveal = top(self.policy(replace(scores, nll=None), draws), masked, count)  # no policy may peek
        if config.threshold is not None:
            sure = masked & (scores.log_confidence > math.log(config.threshold))
            extra = (sure & ~reveal).sum(1)
            reveal |= sure
        else:
            extra = torch.zeros_like(following)
        self.revealed = self.revealed | reveal

        # A fast-forwarded row has overtaken its stage: find it anew, but never behind the next one, or a row
        # whose last token stays below the threshold would never end.
        now = (self.clean.maskable & self.revealed).sum(1)
        overtaken = now * config.stages // length
        self.stage = torch.where(extra > 0, torch.maximum(following, overtaken), following)
        ended = (self.stage >= config.live_stages) | (now >= length) | (now >= config.until * length)
        self._replace(ended)
        self.metrics = {
            "refills": float(ended.sum()),
            "mean_stage": float(self.stage.double().mean()),
            "fast_forwarded": float(extra.sum() / reveal.sum()),
        }
        self._awaits_scores = False

    def state_dict(self) -> dict[str, Any]:
        """The pool, its chains and the stream's position."""
        pool = {field.name: getattr(self.clean, field.name) for field in fields(TokenBatch)}
        return {"rows": self.rows.state_dict(), "pool": pool, "revealed": self.revealed, "stage": self.stage}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, mid-chain.

        Raises:
            ValueError: where the saved pool has another number of rows.
        """
        pool = TokenBatch(**state["pool"])
        if len(pool) != len(self.clean):
            raise ValueError(
                f"the saved pool has {len(pool)} rows for this rank, this run has {len(self.clean)}: "
                "resume with the same batch size and number of ranks"
            )
        self.rows.load_state_dict(state["rows"])
        self.clean = pool.to(self.device)
        self.revealed, self.stage = state["revealed"].to(self.device), state["stage"].to(self.device)
        self._awaits_scores = False

    def _target(self, clean: TokenBatch, stage: Tensor) -> Tensor:
        """[B] tokens to have revealed in `stage`: round(r · L_eff), r uniform in the stage, at most L_eff - 1."""
        purpose = noise.Purpose.STAGE
        within = noise.uniforms(self.seed, clean.row, clean.draw, 1, purpose=purpose, salt=stage[:, None])[:, 0]
        ratio = (stage + within) / self.config.stages
        most = (self.config.until * clean.effective_length.double() - 1e-9).ceil().long() - 1
        return torch.minimum((ratio * clean.effective_length).round().long(), most)

    def _entry(self, clean: TokenBatch, stage: Tensor) -> Tensor:
        """[B, L] revealed positions of rows that enter at `stage`: clues and padding, and a random choice."""
        uniform = noise.uniforms(self.seed, clean.row, clean.draw, clean.length)
        return smallest(uniform, clean.maskable, self._target(clean, stage)[:, None])

    def _replace(self, ended: Tensor) -> None:
        """Put the next rows of the stream in place of those that ended; they enter at stage 0."""
        slots = ended.nonzero()[:, 0]
        new = self.rows.take(len(slots), gather_counts(len(slots), self.rows.world_size)).to(self.device)
        if len(slots) == 0:
            return
        self.clean = self.clean.replaced(slots, new)
        self.stage = self.stage.index_fill(0, slots, 0)
        new = new.padded(self.clean.length)
        missing = self.clean.length - self.revealed.shape[1]
        revealed = torch.nn.functional.pad(self.revealed, (0, missing))
        self.revealed = revealed.index_copy(0, slots, self._entry(new, self.stage[slots]))

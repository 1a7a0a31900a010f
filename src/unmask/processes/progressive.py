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
from unmask.schedules import Schedule, check_schedule, integer_at


@dataclass(frozen=True)
class ProgressiveUnmasking:
    """PUMA's teacher-forced chain with batch streaming.

    Attributes:
        stages: K, a number or a `Schedule` of them. Stage j trains at a revealed ratio in [j/K, (j+1)/K), up to
            rounding to whole tokens. When K changes, every chain goes on from where it is: its stage becomes the
            one that holds its revealed ratio.
        policy: reveal policy, a name in `unmask.policies` or a function (scores, noise) -> priority [B, L].
        threshold: fast-forward: also reveal every masked position whose top probability exceeds this; in
            (0, 1). None: off.
        until: replace a row once this share of it is revealed, in (0, 1]; 1 is the paper's chain.
        exponent: warp of the stages: stage j covers revealed ratios [(j/K)^e, ((j+1)/K)^e); 1 is the paper's chain.
            Above 1 a chain spends more of its steps nearly masked, below 1 nearly revealed. It weights the stages
            by how often they are trained at, rather than by a weight on the loss or by training at one state
            twice: every forward still meets a new state, and rows are refilled as often as before.
    """

    stages: Schedule = 8
    policy: str | Policy = "confidence"
    threshold: float | None = None
    until: float = 1.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        check_schedule("stages", self.stages, lambda k: k >= 1, "a positive integer", whole=True)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is a probability in (0, 1), or None for no fast-forward; got {self.threshold}"
            )
        if not 0 < self.until <= 1:
            raise ValueError(f"until is a share of revealed tokens in (0, 1], got {self.until}")
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"exponent must be greater than 0, got {self.exponent}")
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
    def needs(self) -> tuple[str, ...]:
        """Statistics of `Scores`: what the policy reads, and the confidence where fast-forward compares it."""
        wanted = needs_of(resolve(self.policy))
        if self.threshold is not None and "log_confidence" not in wanted:
            wanted = ("log_confidence", *wanted)
        return wanted

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ProgressiveProcess:
        """Start with a pool of fresh rows whose first stages are spread evenly.

        `batch_size` counts the rows (forwards) of a step over all ranks together.
        """
        return ProgressiveProcess(self, rows, batch_size, seed, device)


def scores_of(scores: Scores | None, positions: Tensor) -> Scores:
    """The scores, if they are those of all positions [B, L]; else ValueError."""
    if scores is None or scores.log_confidence.shape != positions.shape:
        got = None if scores is None else tuple(scores.log_confidence.shape)
        raise ValueError(
            f"progressive unmasking needs the scores of all {tuple(positions.shape)} positions, got {got}"
        )
    return scores


class Chains:
    """Teacher-forced chains of units, each advancing by itself: what is revealed, and at which stage it is.

    A unit is whatever the caller hands in as a row: a whole row, or one block of it with a row number of its
    own. Chains know of no stream and no batch. A unit without a maskable position has nothing to reveal: its
    chain ends at its first step.

    Attributes:
        clean: [N, L] the units.
        revealed: [N, L] bool, maskable positions revealed so far.
        stage: [N] int64.
        stages: K, as `restage` set it; at first the config's at step 0.
        fast_forwarded: share of the tokens revealed by the last `advance` that only the threshold revealed.
    """

    def __init__(self, config: ProgressiveUnmasking, clean: TokenBatch, stage: Tensor, seed: int) -> None:
        self.config, self.seed = config, seed
        self.policy = resolve(config.policy)
        self.stages = integer_at(config.stages, 0)
        self.clean, self.stage = clean, stage
        self.revealed = self.entry(clean, stage)
        self.fast_forwarded = 0.0

    @property
    def masked(self) -> Tensor:
        """[N, L] positions that are still masked."""
        return self.clean.maskable & ~self.revealed

    @property
    def live(self) -> int:
        """Stages that a unit can be trained in before `until` ends its chain."""
        return max(1, math.ceil(self.stages * self.config.until ** (1 / self.config.exponent) - 1e-9))

    def entry(self, clean: TokenBatch, stage: Tensor) -> Tensor:
        """[n, L] what is revealed of units that enter at `stage` [n]: a random choice of as many as it says."""
        uniform = self.uniforms(clean, clean.length, noise.Purpose.MASK)
        return smallest(uniform, clean.maskable, self._target(clean, stage)[:, None])

    def advance(self, scores: Scores | None, units: Tensor | None = None) -> Tensor:
        """Move chains on by one stage: reveal what the policy ranks first, and what passes the threshold.

        Args:
            scores: [n, L] of the units' masked positions.
            units: [n] int64 index of the units that move; by default all of them. The others stay as they are.

        Returns:
            [n] bool, which of them have ended. A unit that has ended may be replaced, or left alone.

        Raises:
            ValueError: for missing or misshapen scores, or a policy that gives NaN; nothing has moved then.
        """
        if units is None:
            units = torch.arange(len(self.clean), device=self.stage.device)
        config, clean, stage, masked = self.config, self.clean[units], self.stage[units], self.masked[units]
        scores = scores_of(scores, masked)

        # At least one token, so that no unit lingers where a stage is less than a token wide (L_eff ≤ K).
        length, following = clean.effective_length, stage + 1
        count = (self._target(clean, following) - (length - masked.sum(1))).clamp(min=1)
        draws = self.uniforms(clean, clean.length, noise.Purpose.REVEAL, stage)
        reveal = top(self.policy(replace(scores, nll=None), draws), masked, count)  # no policy may peek
        if config.threshold is not None:
            sure = masked & (scores.log_confidence > math.log(config.threshold))
            extra = (sure & ~reveal).sum(1)
            reveal |= sure
        else:
            extra = torch.zeros_like(following)
        self.revealed = self.revealed.index_copy(0, units, self.revealed[units] | reveal)

        # A fast-forwarded unit has overtaken its stage: find it anew, but never behind the next one, or a unit
        # whose last token stays below the threshold would never end.
        now = length - (masked & ~reveal).sum(1)
        overtaken = torch.maximum(following, self._stage_of(now, length))
        stage = torch.where(extra > 0, overtaken, following)
        self.stage = self.stage.index_copy(0, units, stage)
        self.fast_forwarded = float(extra.sum() / reveal.sum().clamp(min=1))
        return (stage >= self.live) | (now >= length) | (now >= config.until * length)

    def replace(self, units: Tensor, new: TokenBatch, stage: Tensor | None = None) -> None:
        """Put new units [n] at the index `units` [n]; they enter at `stage` [n], by default 0."""
        if len(units) == 0:
            return
        stage = torch.zeros_like(units) if stage is None else stage
        self.clean = self.clean.replaced(units, new)
        self.stage = self.stage.index_copy(0, units, stage)
        revealed = torch.nn.functional.pad(self.revealed, (0, self.clean.length - self.revealed.shape[1]))
        self.revealed = revealed.index_copy(0, units, self.entry(new.padded(self.clean.length), stage))

    def restage(self, stages: int) -> None:
        """Go on with another K. Nothing is revealed or hidden: each unit's stage is that of its revealed ratio."""
        if stages == self.stages:
            return
        self.stages = stages
        revealed = (self.clean.maskable & self.revealed).sum(1)
        self.stage = self._stage_of(revealed, self.clean.effective_length).clamp(max=self.live - 1)

    def state_dict(self) -> dict[str, Any]:
        """Units, what is revealed of them, and stages; K follows from the step."""
        pool = {field.name: getattr(self.clean, field.name) for field in fields(TokenBatch)}
        return {"pool": pool, "revealed": self.revealed, "stage": self.stage}

    def load_state_dict(self, state: dict[str, Any], stages: int) -> None:
        """Continue where `state_dict` was taken, mid-chain, at a K of `stages`.

        Raises:
            ValueError: where the saved pool has another number of units.
        """
        pool = TokenBatch(**state["pool"])
        if len(pool) != len(self.clean):
            raise ValueError(
                f"the saved pool has {len(pool)} rows for this rank, this run has {len(self.clean)}: "
                "resume with the same batch size and number of ranks"
            )
        device = self.stage.device
        self.clean, self.stages = pool.to(device), stages
        self.revealed, self.stage = state["revealed"].to(device), state["stage"].to(device)

    def uniforms(self, clean: TokenBatch, length: int, purpose: noise.Purpose, stage: Tensor | None = None) -> Tensor:
        """[n, length] uniform numbers for one purpose of units: all the randomness that chains have.

        Numbers are drawn once for each stage; after a change of K stages count anew.
        """
        salt: int | Tensor = 0
        if stage is not None:
            salt = (stage + ((self.stages - integer_at(self.config.stages, 0)) << 32))[:, None]
        return noise.uniforms(self.seed, clean.row, clean.draw, length, purpose=purpose, salt=salt)

    def _target(self, clean: TokenBatch, stage: Tensor) -> Tensor:
        """[n] tokens to reveal by `stage`: round(r · L_eff), r^(1/e) uniform in the stage, at most L_eff - 1."""
        within = self.uniforms(clean, 1, noise.Purpose.STAGE, stage)[:, 0]
        ratio = ((stage + within) / self.stages) ** self.config.exponent
        most = (self.config.until * clean.effective_length.double() - 1e-9).ceil().long() - 1
        return torch.minimum((ratio * clean.effective_length).round().long(), most)

    def _stage_of(self, revealed: Tensor, length: Tensor) -> Tensor:
        """[n] the stage that holds the ratio revealed / length."""
        ratio = revealed.double() / length.clamp(min=1)
        # The margin keeps a ratio that is exactly a boundary from falling below it.
        return (self.stages * ratio ** (1 / self.config.exponent) + 1e-9).floor().long()


class ProgressiveProcess:
    """A pool of rows of the stream and their chains; a row whose chain ends is replaced by the stream's next.

    Args:
        config: of the chains.
        rows: the stream.
        batch_size: slots of the pool over all ranks together; each rank holds an equal, contiguous part.
        seed: of the noise.
        device: where the chains live.
        active: see `select`; by default every slot takes part.
    """

    def __init__(
        self,
        config: ProgressiveUnmasking,
        rows: RowStream,
        batch_size: int,
        seed: int,
        device: torch.device | str | None,
        active: Tensor | None = None,
    ) -> None:
        self.slots = local_size(batch_size, rows.world_size)
        if rows.importance is not None:
            raise ValueError("progressive unmasking keeps rows for many steps: its stream cannot draw by importance")
        self.config, self.rows, self.device = config, rows, device
        nobody = TokenBatch(
            tokens=torch.zeros(self.slots, 0, dtype=torch.int64),
            maskable=torch.zeros(self.slots, 0, dtype=torch.bool),
            attention=torch.zeros(self.slots, 0, dtype=torch.bool),
            row=torch.full((self.slots,), -1),
            draw=torch.zeros(self.slots, dtype=torch.int64),
            weight=torch.ones(self.slots),
        ).to(device)
        self.chains = Chains(config, nobody, torch.zeros_like(nobody.row), seed)
        self.opened = torch.zeros(batch_size, dtype=torch.bool)
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._awaits_scores = False
        self.select(torch.ones(batch_size, dtype=torch.bool) if active is None else active)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the policy reads, and the confidence where fast-forward compares it."""
        return self.config.needs

    @property
    def clean(self) -> TokenBatch:
        """This rank's rows."""
        return self.chains.clean

    @property
    def stage(self) -> Tensor:
        """[B] their stages."""
        return self.chains.stage

    @property
    def masked(self) -> Tensor:
        """[B, L] positions that are still masked."""
        return self.chains.masked

    def select(self, active: Tensor) -> None:
        """Choose the slots that take part from now on; the chains of the others wait as they are.

        Args:
            active: [batch_size] bool over all ranks' slots. Those never active before get rows now, whose first
                stages are spread evenly over all that do.
        """
        new = (active & ~self.opened).view(-1, self.slots)
        self.opened = self.opened | active
        rank = self.rows.rank
        counts = new.sum(1).tolist()
        if sum(counts):
            slots = new[rank].nonzero()[:, 0]
            number = torch.arange(len(slots)) + sum(counts[:rank])
            clean = self.rows.take(len(slots), counts).to(self.device)
            stage = (number * self.chains.live // sum(counts)).to(clean.row.device)
            self.chains.replace(slots.to(clean.row.device), clean, stage)
        self.running = active.view(-1, self.slots)[rank].nonzero()[:, 0].to(self.stage.device)

    def draw(self) -> MaskedBatch:
        """Return the active rows of the pool as they stand.

        Raises:
            RuntimeError: where the scores of the last draw were never given to `observe`: the chains would
                stand still, and training would see the same masks for ever.
        """
        if self._awaits_scores:
            raise RuntimeError("draw() was called twice without observe(scores) between: the chains cannot advance")
        self._awaits_scores = True
        clean, masked = self.clean[self.running], self.masked[self.running]
        rate = masked.sum(1, keepdim=True).double() / clean.effective_length[:, None]
        return MaskedBatch(clean, masked, rate, None, group=clean.row)

    def observe(self, scores: Scores | None) -> None:
        """Advance every active chain by one stage, with the scores of the last draw; replace the rows that end.

        Args:
            scores: [B, L] for all rows of the last draw, in their order.

        Raises:
            ValueError: for missing or misshapen scores, or a policy that gives NaN.
        """
        if not self._awaits_scores:
            raise RuntimeError("observe() takes the scores of a draw, and there was no draw() since the last")
        ended = self.running[self.chains.advance(scores, self.running)]
        new = self.rows.take(len(ended), gather_counts(len(ended), self.rows.world_size))
        self.chains.replace(ended, new.to(self.device))
        self.metrics = {
            "refills": float(len(ended)),
            "mean_stage": float(self.stage[self.running].sum()) / max(1, len(self.running)),
            "fast_forwarded": self.chains.fast_forwarded,
            "stages": float(self.chains.stages),
            "rows": float(self.rows.position),
        }
        self.step += 1
        self.chains.restage(integer_at(self.config.stages, self.step))
        self._awaits_scores = False

    def state_dict(self) -> dict[str, Any]:
        """The pool, its chains, the steps done and the stream's position."""
        return {"rows": self.rows.state_dict(), "step": self.step, "opened": self.opened, **self.chains.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, mid-chain.

        Raises:
            ValueError: where the saved pool has another number of rows.
        """
        step = int(state["step"])
        self.chains.load_state_dict(state, integer_at(self.config.stages, step))
        self.rows.load_state_dict(state["rows"])
        self.step, self.opened = step, state["opened"]
        self._awaits_scores = False

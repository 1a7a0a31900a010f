"""Progressive unmasking (PUMA, arXiv 2602.10314): train along the model's own teacher-forced unmasking chain.

A pool holds one chain for each of its rows. Each step trains some of them as they stand; then the policy, fed with
the scores of that same forward, chooses which masked positions to reveal next, and their clean tokens are revealed.
Rows whose chains end are replaced by new ones. So masks seen in training are those met at inference, at no extra
forward.

Why it is sound: the probability of choosing a set depends on the visible state alone, so Bayes' rule cancels
it, and the posterior of a masked token given the visible ones stays the data's (the paper's Proposition 2). Which
chains train at a step depends on no token at all, so a pool of any size leaves this as it is.

In the paper the pool is the batch. Then a row is trained K times in a row, and consecutive gradients come from the
same few rows; a pool larger than the batch mends that (docs/puma.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.config import positive_int, require, to_json
from unmask.data.importance import RowImportance
from unmask.data.stream import RowStream
from unmask.distributed import gather_counts
from unmask.fitted_times import is_fitted
from unmask.policies import Policy, needs_of, resolve, stored
from unmask.processes.base import check_kind, local_size
from unmask.processes.blocks import Blocks
from unmask.processes.chains import Chain
from unmask.processes.kept import check_same_pool, kept_of, rows_kept
from unmask.schedules import Schedule, check_schedule, integer_at
from unmask.times import TimeDistribution, Uniform, check_law

STEPS_BETWEEN_VISITS = 32
"""Steps between two visits to a chain that a pool of our choice aims at; see `ProgressiveUnmasking.pool_size`."""


@dataclass(frozen=True)
class ProgressiveUnmasking:
    """PUMA's teacher-forced chains in a pool.

    Attributes:
        stages: K, a number or a `Schedule` of them: how often a row is trained, unless it is fast-forwarded. When K
            changes, every chain goes on from where it is: its stage becomes the one of its revealed ratio.
        policy: reveal policy, a name in `unmask.policies` or a function (scores, noise) -> priority [B, L].
        threshold: fast-forward: also reveal every masked position whose top probability exceeds this; in
            (0, 1). None: off.
        time: distribution of the mask rates that a chain passes through: each stage has the same share of it, from
            high rates to low. `Uniform()` is the paper's chain. `Clipped(0.5, 1)` ends it half revealed, `Bell()`
            spends its stages in the middle, `Beta(1, 0.5)` near its start. Without a threshold, a chain met at
            a random step has a rate of this distribution.
        pool: chains over all ranks; a multiple of the batch. None: see `pool_size`. "batch": the paper's, as many as
            a step trains.
    """

    stages: Schedule = 8
    policy: str | Policy = "confidence"
    threshold: float | None = None
    time: TimeDistribution = field(default_factory=Uniform)
    pool: int | Literal["batch"] | None = None

    def __post_init__(self) -> None:
        check_schedule("stages", self.stages, lambda k: k >= 1, "a positive integer", whole=True)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is a probability in (0, 1), or None for no fast-forward; got {self.threshold}"
            )
        if is_fitted(self.time):
            raise ValueError(f"time: {self.time} learns during training, and a chain's stages are fixed: use another")
        check_law(self.time)
        if self.pool not in (None, "batch"):
            positive_int("pool", self.pool)
        ordered = resolve(self.policy) is stored
        require(not (ordered and self.threshold), "a stored order tells of hidden tokens once fast-forward leaves it")

    @property
    def has_density(self) -> bool:
        """Never: the law of a chain's masks depends on the model and is intractable."""
        return False

    @property
    def peeks(self) -> bool:
        """Never: policies are not shown hidden tokens."""
        return False

    @property
    def support(self) -> tuple[float, float]:
        """That of `time`."""
        return self.time.support

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics of `Scores`: what the policy reads, and the confidence where fast-forward compares it."""
        wanted = needs_of(resolve(self.policy))
        if self.threshold is not None and "log_confidence" not in wanted:
            wanted = ("log_confidence", *wanted)
        return wanted

    def pool_size(self, batch_size: int, rows: int | None) -> int:
        """Chains over all ranks, for a batch and a data set of so many rows; None: it is streamed.

        Where `pool` is None: as many that on average 32 steps lie between two visits to a chain, but no more than the
        data set has rows. Ten batches were too few for 16 stages and enough for 8; above, no size was told from
        another (docs/puma.md), so neither stages nor steps are in the rule. A chain takes 32 K steps from end to end:
        a run that is not several times as long wants a smaller pool.

        Raises:
            ValueError: for a pool that is no multiple of the batch.
        """
        if self.pool == "batch":
            return batch_size
        if self.pool is None:
            most = STEPS_BETWEEN_VISITS if rows is None else rows // batch_size
            return batch_size * max(1, min(STEPS_BETWEEN_VISITS, most))
        if self.pool % batch_size:
            near = max(1, round(self.pool / batch_size)) * batch_size
            raise ValueError(
                f"pool {self.pool} is no multiple of batch_size {batch_size}, so a sweep over it would not be of "
                f"whole steps; use {near}, say"
            )
        return self.pool

    def chain(self, stages: int, seed: int) -> Chain:
        """The law of its chains while K is `stages`."""
        return Chain(stages, self.policy, self.time, self.threshold, seed, integer_at(self.stages, 0))

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ProgressiveProcess:
        """Start with a pool of fresh rows whose first stages are spread evenly.

        `batch_size` counts the rows (forwards) of a step over all ranks together.

        Raises:
            ValueError: where ranks do not divide the batch, or the batch does not divide the pool.
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


def refuse_importance(masking: Any, importance: RowImportance | None) -> None:
    """Raise ValueError where rows are drawn by importance for chains, or blocks of chains."""
    require(
        importance is None or not isinstance(getattr(masking, "masking", masking), ProgressiveUnmasking),
        "ProgressiveUnmasking keeps rows for as many steps as their chains have: what a row weighs does not follow "
        "from how it was drawn. Leave importance at None, or use IndependentMasking",
    )


class ProgressiveProcess:
    """A pool of rows of the stream; every block of a row is a chain. All of it lives on the CPU.

    The global batch has `batch_size` slots. Each slot has as many chains of its own as every other, and deals them
    once a sweep, in an order shuffled by (seed, sweep, slot). So a chain is trained once in every sweep, no batch
    holds a chain twice, and a rank that has some of the slots needs to know of no other rank's chains. First stages
    ascend over the pool: a slot's chains begin near one stage, so that every batch has all of them evenly.

    A row is replaced once the chains of all its blocks have ended; a block whose chain has ended before that carries
    no mask. Where the size of the blocks changes, the pool begins anew with the next rows of the stream. What is
    revealed of a block was chosen by scores that saw all blocks before it clean: in blocks of another size it would
    tell of tokens that are hidden then. Nor can the same rows enter again: which of them are left, after
    fast-forward, tells of their tokens too.

    Args:
        config: of the chains.
        rows: the stream.
        batch_size: rows of a step over all ranks together; each rank has an equal, contiguous part of the slots.
        seed: of the noise.
        device: where drawn batches are put.
        size: positions of a block; None: a row is one block.

    Attributes:
        clean: [N, L] this rank's part of the pool, slot by slot.
        revealed: [N, L] bool.
        stage: [N, blocks of a row] int64.
    """

    def __init__(
        self,
        config: ProgressiveUnmasking,
        rows: RowStream,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        size: Schedule | None = None,
    ) -> None:
        self.slots = local_size(batch_size, rows.world_size)
        refuse_importance(config, rows.importance)
        self.config, self.rows, self.seed, self.device = config, rows, seed, device
        self.pool = config.pool_size(batch_size, rows.size)
        self.turns = self.pool // batch_size
        self.step, self.metrics = 0, {}
        self.size = size
        self._sweep, self._order = -1, torch.empty(0)
        self._drawn: Tensor | None = None

        self._begin()

    @property
    def needs(self) -> tuple[str, ...]:
        """What the policy reads, and the confidence where fast-forward compares it."""
        return self.config.needs

    @property
    def turn(self) -> Tensor:
        """[B] places in this rank's part of the pool that train at this step."""
        sweep, turn = divmod(self.step, self.turns)
        slot = torch.arange(self.slots)
        if sweep != self._sweep:
            number = (slot + self.rows.rank * self.slots)[:, None]
            keys = noise.hashes(self.seed, int(noise.Purpose.TURN), sweep, number, torch.arange(self.turns))
            self._sweep, self._order = sweep, keys.argsort(dim=1, stable=True)
        return slot * self.turns + self._order[:, turn]

    def draw(self) -> MaskedBatch:
        """Return the rows whose turn it is, as they stand.

        Raises:
            RuntimeError: where the scores of the last draw were never given to `observe`: the chains would
                stand still, and training would see the same masks for ever.
        """
        if self._drawn is not None:
            raise RuntimeError("draw() was called twice without observe(scores) between: the chains cannot advance")
        self._drawn = turn = self.turn
        clean, blocks = self.clean[turn], self.blocks
        units = blocks.units(clean)
        ended = self.chain.ended(units, *self._of_units(turn))
        masked = clean.maskable & ~self.revealed[turn] & ~blocks.unfold(ended[:, None].expand(-1, blocks.size))
        share = blocks.fold(masked).sum(1, keepdim=True).double() / units.effective_length.clamp(min=1)[:, None]
        if self.size is None:
            return MaskedBatch(clean, masked, share, None).to(self.device)
        rate = blocks.unfold(share.expand(-1, blocks.size))
        return MaskedBatch(clean, masked, rate, None, blocks.numbers(masked)).to(self.device)

    def observe(self, scores: Scores | None) -> None:
        """Advance every chain of the last draw by one stage; replace the rows that end.

        Args:
            scores: [B, L] for all rows of the last draw, in their order.

        Raises:
            ValueError: for missing or misshapen scores, or a policy that gives NaN; nothing has moved then.
        """
        if self._drawn is None:
            raise RuntimeError("observe() takes the scores of a draw, and there was no draw() since the last")
        turn, blocks = self._drawn, self.blocks
        clean = self.clean[turn]
        units = blocks.units(clean)
        scores = scores_of(scores, clean.tokens).map(lambda score: blocks.fold(score.cpu()))
        revealed, stage = self._of_units(turn)
        running = (~self.chain.ended(units, revealed, stage)).nonzero()[:, 0]
        moved = self.chain.advance(units[running], revealed[running], stage[running], scores[running])
        forwarded = float(moved[2].sum() / (moved[0] & ~revealed[running]).sum().clamp(min=1))
        revealed[running], stage[running] = moved[:2]
        self.revealed[turn] = blocks.unfold(revealed)
        self.stage[turn] = stage.view(len(turn), -1)
        ended = self._ended(units, revealed, stage)
        self.step += 1
        begins = self._size_at(self.step) != self._size_at(self.step - 1)  # the same on all ranks
        self.metrics = {
            "refills": float(self.stage.shape[0] if begins else ended.sum()),
            "mean_stage": float(moved[1].double().mean()),
            "fast_forwarded": forwarded,
            "stages": float(self.chain.stages),
            "pool": float(self.pool),
        }
        if self.size is not None:
            self.metrics["block_size"] = float(self.blocks.size)
        if begins:
            self._begin()
        else:
            self._replace(turn[ended])
            self._restage()
        self.metrics["rows"] = float(self.rows.position)
        self._drawn = None

    def state_dict(self) -> dict[str, Any]:
        """Which rows the pool holds, what is revealed of them, their stages, the steps done, the stream's position.

        What lies under "pool" is row by row, in the order of the ranks' slots; so the parts of all ranks, joined, can
        be dealt to any number of ranks (`processes.base.dealt_anew`).
        """
        return {
            "made_by": self._made_by,
            "rows": self.rows.state_dict(),
            "step": self.step,
            "pool": {
                "place": self._place,
                **kept_of(self.clean, self.rows),
                "revealed": self.revealed.clone(),
                "stage": self.stage.clone(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, mid-chain.

        Raises:
            ValueError: where the state is of other chains, pool, batch or seed, holds the rows of another rank or of
                another number of them, or rows that have other tokens now.
        """
        check_kind(state, "rows", "pool", "step")
        pool = state["pool"]
        check_same_pool(state, self._made_by, self._place)
        self.rows.load_state_dict(state["rows"])
        clean = rows_kept(pool, self.rows).padded(pool["revealed"].shape[1])
        self.step, self.clean, self._drawn = int(state["step"]), clean, None
        self.chain = self.config.chain(integer_at(self.config.stages, self.step), self.seed)
        self.blocks = self._cut(clean.length)
        self.revealed, self.stage = pool["revealed"].clone(), pool["stage"].clone()

    @property
    def _made_by(self) -> dict[str, Any]:
        """What a state goes on under alone, the same on all ranks, in values of JSON."""
        config, policy = self.config, resolve(self.config.policy)
        fixed = {name: getattr(config, name) for name in ("stages", "threshold", "time")}
        fixed |= {"policy": getattr(policy, "__qualname__", type(policy).__name__), "size": self.size}
        return to_json(fixed | {"pool": self.pool, "batch_size": self.pool // self.turns, "seed": self.seed})

    @property
    def _place(self) -> Tensor:
        """[N] places of this rank's rows in the whole pool."""
        own = self.slots * self.turns
        return self.rows.rank * own + torch.arange(own)

    def _begin(self) -> None:
        """Fill the pool with the next rows of the stream, their first stages spread evenly."""
        self.chain = self.config.chain(integer_at(self.config.stages, self.step), self.seed)
        self.clean = self.rows.take(self.slots * self.turns)
        self.blocks = self._cut(self.clean.length)
        self.stage = (self._place * self.chain.stages // self.pool)[:, None].repeat(1, self.blocks.count)
        self.revealed = self._entered(self.clean, self.stage)

    def _size_at(self, step: int) -> int | None:
        """Positions of a block at a step, whatever the rows' length; None: rows are not cut."""
        return None if self.size is None else integer_at(self.size, step)

    def _cut(self, length: int) -> Blocks:
        """How rows of so many positions are cut at this step."""
        return Blocks.of(length, self._size_at(self.step))

    def _of_units(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """What is revealed of the units of some rows [n · blocks, size], and their stages [n · blocks]."""
        return self.blocks.fold(self.revealed[places]), self.stage[places].flatten()

    def _ended(self, units: TokenBatch, revealed: Tensor, stage: Tensor) -> Tensor:
        """[n] bool, rows of whose units [n · blocks] all chains have ended."""
        return self.chain.ended(units, revealed, stage).view(-1, self.blocks.count).all(1)

    def _entered(self, clean: TokenBatch, stage: Tensor) -> Tensor:
        """[n, L] what is revealed of rows whose blocks enter at `stage` [n, blocks]."""
        return self.blocks.unfold(self.chain.entry(self.blocks.units(clean), stage.flatten()))

    def _replace(self, places: Tensor) -> None:
        """Put the next rows of the stream in place of those that ended; their blocks enter at stage 0."""
        new = self.rows.take(len(places), gather_counts(len(places), self.rows.world_size))
        if len(places) == 0:
            return
        if new.length > self.clean.length:  # longer than any before; other rows get empty blocks at their ends
            self.revealed = pad(self.revealed, (0, new.length - self.clean.length))
            self.clean, self.blocks = self.clean.padded(new.length), self._cut(new.length)
            self.stage = pad(self.stage, (0, self.blocks.count - self.stage.shape[1]))
        self.clean.put(places, new.padded(self.clean.length))
        self.stage[places] = 0
        self.revealed[places] = self._entered(self.clean[places], self.stage[places])

    def _restage(self) -> None:
        """Go on with the K of this step. Nothing is revealed or hidden."""
        stages = integer_at(self.config.stages, self.step)
        if stages == self.chain.stages:
            return
        every = torch.arange(len(self.clean))
        units, (revealed, stage) = self.blocks.units(self.clean), self._of_units(every)
        ended = self.chain.ended(units, revealed, stage)
        self.chain = self.config.chain(stages, self.seed)
        self.stage = self.chain.restaged(units, revealed, ended).view(len(every), -1)

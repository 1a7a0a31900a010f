"""Block diffusion (arXiv 2503.09573) as a forward process: each block of a row is masked by itself.

A row is cut into blocks of `size` positions; block b is predicted from the clean blocks before it and its own
noisy state (`unmask.models.attention`). Every block is a *unit* with a mask rate, or a chain, of its own. So blocks
are folded into rows of their own, and what draws masks for rows draws them for blocks: noise, rates, mask rules,
couplings and chains are the same code. With `size` of at least L it is ordinary masked diffusion; with size 1, an
exact count and a shifted read-out it is autoregressive training, and its ELBO the exact negative log-likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.stream import RowStream
from unmask.distributed import gather_counts
from unmask.processes.base import ForwardProcess, local_size
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import Chains, ProgressiveUnmasking, scores_of
from unmask.schedules import Schedule, check_schedule, integer_at
from unmask.times import TimeDistribution


@dataclass(frozen=True)
class Blockwise:
    """Each block of `size` positions is masked by itself, as `masking` says.

    Attributes:
        masking: of a block: `IndependentMasking`, with a time distribution that does not learn during training, or
            `ProgressiveUnmasking`. Its units are blocks: strata are over all blocks of the global batch. Mirrored
            pairs are pairs of rows, each block with its own rate and field.
        size: positions of a block, a number or a `Schedule` of them (a curriculum from 1 to L, say). At least L:
            no blocks.
    """

    masking: IndependentMasking | ProgressiveUnmasking
    size: Schedule

    def __post_init__(self) -> None:
        check_schedule("size", self.size, lambda size: size >= 1, "a positive number of positions", whole=True)
        if not isinstance(self.masking, (IndependentMasking, ProgressiveUnmasking)):
            raise ValueError(f"masking must be IndependentMasking or ProgressiveUnmasking, got {self.masking!r}")
        if isinstance(self.masking, IndependentMasking):
            time = self.masking.time.start()
            if time.learns or time.measures is not None:
                raise ValueError(
                    f"{self.masking.time} learns from whole rows, and here each block has a rate of its own: use a "
                    "fixed time distribution"
                )

    @property
    def has_density(self) -> bool:
        """Whether the masking of a block has one: rate and density are stated block by block."""
        return self.masking.has_density

    @property
    def support(self) -> tuple[float, float]:
        """That of the masking of a block."""
        return self.masking.support

    def cut(self, length: int, step: int = 0) -> Blocks:
        """How rows of `length` positions are cut at `step`."""
        return Blocks(max(1, min(integer_at(self.size, step), length)), length)

    def assemble(
        self,
        clean: TokenBatch,
        blocks: Blocks,
        t: Tensor,
        time: TimeDistribution,
        uniform: Tensor,
        other: Tensor | None,
        group: Tensor,
    ) -> MaskedBatch:
        """Make rows from clean rows and the rates and uniforms of their blocks: no randomness of its own.

        Args:
            clean: U rows.
            blocks: how they are cut.
            t: [U · blocks] rates, block by block.
            time: the distribution that they were drawn from.
            uniform: [U · blocks, size] field of each block.
            other: as `uniform`, second field, read with `mirror_below` alone.
            group: [U] group of each row.

        Returns:
            The batch of U rows, or 2U with mirroring. Blocks without a maskable position carry no mask.
        """
        assert isinstance(self.masking, IndependentMasking)
        units = blocks.units(clean)
        batch = self.masking.assemble(units, t, time, uniform, other, torch.zeros(len(units), dtype=torch.int64))
        each = len(batch) // len(units)
        assert batch.rate is not None
        assert batch.density is not None
        row = torch.arange(len(clean), device=clean.tokens.device).repeat_interleave(each)
        masked, rate, density = (
            blocks.unfold(x.expand(batch.masked.shape), each) for x in (batch.masked, batch.rate, batch.density)
        )
        return MaskedBatch(clean[row], masked, rate, density, group.to(row.device)[row], blocks.numbers(masked))

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ForwardProcess:
        """Start drawing. `batch_size` counts the rows of a step over all ranks together.

        Raises:
            ValueError: where ranks and units do not divide the batch.
        """
        if isinstance(self.masking, IndependentMasking):
            return IndependentBlocks(self, self.masking, rows, batch_size, seed, device)
        return ProgressiveBlocks(self, self.masking, rows, batch_size, seed, device)


@dataclass(frozen=True)
class Blocks:
    """Rows of `length` positions cut into blocks of `size`; the last one may be shorter.

    Folding turns [B, L] into [B · count, size], the blocks of a row next to one another.
    """

    size: int
    length: int

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return -(-self.length // self.size)

    def fold(self, rows: Tensor) -> Tensor:
        """[B, L] -> [B · count, size], padded with zeros."""
        return pad(rows, (0, self.count * self.size - self.length)).view(-1, self.size)

    def unfold(self, units: Tensor, each: int = 1) -> Tensor:
        """[B · count · each, size] -> [B · each, L]: undoes `fold` where every block became `each` rows."""
        by_block = units.reshape(-1, self.count, each, self.size).transpose(1, 2)
        return by_block.reshape(-1, self.count * self.size)[:, : self.length]

    def numbers(self, rows: Tensor) -> Tensor:
        """[B, L] int64 block of each position, for the shape and device of `rows`."""
        return (torch.arange(self.length, device=rows.device) // self.size).expand(len(rows), -1)

    def units(self, clean: TokenBatch) -> TokenBatch:
        """The blocks of rows as rows of their own, with noise of their own."""
        row = clean.row.repeat_interleave(self.count)
        number = torch.arange(self.count, device=row.device).repeat(len(clean))
        # The first block keeps the row's number: a row of one block has the noise of a row without blocks.
        row = torch.where(number == 0, row, noise.hashes(row, self.size, number))
        length = clean.expected_length
        return TokenBatch(
            tokens=self.fold(clean.tokens),
            maskable=self.fold(clean.maskable),
            attention=self.fold(clean.attention),
            row=row,
            draw=clean.draw.repeat_interleave(self.count),
            weight=clean.weight.repeat_interleave(self.count),
            expected_length=None if length is None else length.repeat_interleave(self.count),
        )


class IndependentBlocks(IndependentProcess):
    """Blocks with rates and masks drawn without regard to the model."""

    def __init__(
        self,
        config: Blockwise,
        masking: IndependentMasking,
        rows: RowStream,
        batch_size: int,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(masking, rows, batch_size, seed, device)
        self.blockwise = config

    def draw(self, active: Tensor | None = None) -> MaskedBatch:
        """Draw the next step's rows of this rank; `active` as for rows without blocks."""
        first, clean, total = self._take(active)
        # Strata count the blocks of the longest row of the global batch, so every rank pads to that.
        clean = clean.padded(max(gather_counts(clean.length, self.rows.world_size))).to(self.device)
        blocks = self.blockwise.cut(clean.length, self.step)
        units = blocks.units(clean)
        quantile = self._quantiles(total * blocks.count)[first * blocks.count :][: len(units)]
        group = self._groups(total)[first:][: len(clean)]
        uniform = self._uniforms(units, noise.Purpose.MASK)
        other = self._uniforms(units, noise.Purpose.MIRROR) if self.config.reads_second_field else None
        self.step += 1
        t = self.time.quantile(quantile)
        batch = self.blockwise.assemble(clean, blocks, t, self.time, uniform, other, group)
        self._last = batch if self.needs is not None else None
        return batch


class BlockChains(Chains):
    """Chains of the blocks of rows."""

    @property
    def ended(self) -> Tensor:
        """[N] bool, units whose chain has ended; those without a maskable position begin so."""
        length = self.clean.effective_length
        revealed = length - self.masked.sum(1)
        return (self.stage >= self.live) | (revealed >= length) | (revealed >= self.config.until * length)

    def regroup(self, clean: TokenBatch, revealed: Tensor, stage: Tensor | None = None) -> None:
        """Go on with the same tokens cut into other units; by default each enters the stage of its revealed ratio.

        Args:
            clean: [N, L] the new units.
            revealed: [N, L] what is revealed of them.
            stage: [N] their stages.
        """
        if stage is None:
            length = clean.effective_length
            stage = self._stage_of((clean.maskable & revealed).sum(1), length).clamp(max=self.live - 1)
        self.clean, self.revealed, self.stage = clean, revealed, stage


class ProgressiveBlocks:
    """A pool of rows whose blocks are chains, each at its own stage.

    A row is replaced once the chains of all its blocks have ended; a block whose chain has ended before that
    carries no mask. When the size changes, rows are cut anew where they stand: what is revealed stays revealed,
    and each new block enters the stage of its revealed ratio.
    """

    def __init__(
        self,
        config: Blockwise,
        masking: ProgressiveUnmasking,
        rows: RowStream,
        batch_size: int,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        local = local_size(batch_size, rows.world_size)
        if rows.importance is not None:
            raise ValueError("progressive unmasking keeps rows for many steps: its stream cannot draw by importance")
        self.config, self.masking, self.rows, self.device = config, masking, rows, device
        self.step = 0
        self.clean = rows.take(local).to(device)
        self.blocks = config.cut(self.clean.length)
        slot = torch.arange(local, device=device) + rows.rank * local
        units = self.blocks.units(self.clean)
        self.chains = BlockChains(masking, units, torch.zeros_like(units.row), seed)
        stage = (slot * self.chains.live // batch_size).repeat_interleave(self.blocks.count)
        self.chains.regroup(units, self.chains.entry(units, stage), stage)
        self.metrics: dict[str, float] = {}
        self._awaits_scores = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What the policy reads, and the confidence where fast-forward compares it."""
        return self.masking.needs

    @property
    def masked(self) -> Tensor:
        """[B, L] positions that are masked: those of blocks whose chains have not ended."""
        return self.blocks.unfold(self.chains.masked & ~self.chains.ended[:, None])

    def draw(self) -> MaskedBatch:
        """Return the pool as it stands.

        Raises:
            RuntimeError: where the scores of the last draw were never given to `observe`.
        """
        if self._awaits_scores:
            raise RuntimeError("draw() was called twice without observe(scores) between: the chains cannot advance")
        self._awaits_scores = True
        masked = self.masked
        share = self.blocks.fold(masked).sum(1).double() / self.chains.clean.effective_length.clamp(min=1)
        rate = self.blocks.unfold(share[:, None].expand(-1, self.blocks.size))
        return MaskedBatch(self.clean, masked, rate, None, self.clean.row, self.blocks.numbers(masked))

    def observe(self, scores: Scores | None) -> None:
        """Advance the chain of every block by one stage, with the scores of the last draw; replace rows that end.

        Args:
            scores: [B, L] for all rows of the last draw, in their order.

        Raises:
            ValueError: for missing or misshapen scores, or a policy that gives NaN.
        """
        if not self._awaits_scores:
            raise RuntimeError("observe() takes the scores of a draw, and there was no draw() since the last")
        scores = scores_of(scores, self.clean.tokens)
        running = (~self.chains.ended).nonzero()[:, 0]
        self.chains.advance(scores.map(self.blocks.fold)[running], running)
        stage = self.chains.stage[running]
        slots = self.chains.ended.view(-1, self.blocks.count).all(1).nonzero()[:, 0]
        self._replace(slots)
        self.metrics = {
            "refills": float(len(slots)),
            "mean_stage": float(stage.double().mean()),
            "fast_forwarded": self.chains.fast_forwarded,
            "stages": float(self.chains.stages),
            "block_size": float(self.blocks.size),
            "rows": float(self.rows.position),
        }
        self.step += 1
        self.chains.restage(integer_at(self.masking.stages, self.step))
        blocks = self.config.cut(self.clean.length, self.step)
        if blocks != self.blocks:
            self._recut(blocks)
        self._awaits_scores = False

    def state_dict(self) -> dict[str, Any]:
        """The pool, what is revealed of it, the blocks' stages, the steps done and the stream's position."""
        return {
            "rows": self.rows.state_dict(),
            "step": self.step,
            "pool": {field.name: getattr(self.clean, field.name) for field in fields(TokenBatch)},
            "revealed": self.blocks.unfold(self.chains.revealed),
            "stage": self.chains.stage,
        }

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
        self.step, self.clean = int(state["step"]), pool.to(self.device)
        self.blocks = self.config.cut(pool.length, self.step)
        self.chains.restage(integer_at(self.masking.stages, self.step))
        revealed, stage = state["revealed"].to(self.device), state["stage"].to(self.device)
        self.chains.regroup(self.blocks.units(self.clean), self.blocks.fold(revealed), stage)
        self._awaits_scores = False

    def _replace(self, slots: Tensor) -> None:
        """Put the next rows of the stream in place of those that ended; their blocks enter at stage 0."""
        new = self.rows.take(len(slots), gather_counts(len(slots), self.rows.world_size)).to(self.device)
        if len(slots) == 0:
            return
        self.clean = self.clean.replaced(slots, new)
        blocks = self.config.cut(self.clean.length, self.step)
        if blocks != self.blocks:  # longer rows than any before; old rows get empty blocks at their ends
            stage = self.chains.stage.view(-1, self.blocks.count)
            self._recut(blocks, pad(stage, (0, blocks.count - self.blocks.count)).flatten())
        units = slots[:, None] * blocks.count + torch.arange(blocks.count, device=slots.device)
        self.chains.replace(units.flatten(), blocks.units(self.clean[slots]))

    def _recut(self, blocks: Blocks, stage: Tensor | None = None) -> None:
        """Cut the pool's rows anew, where they stand."""
        revealed = pad(self.blocks.unfold(self.chains.revealed), (0, blocks.length - self.blocks.length))
        self.chains.regroup(blocks.units(self.clean), blocks.fold(revealed), stage)
        self.blocks = blocks

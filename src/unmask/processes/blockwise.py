"""Block diffusion (arXiv 2503.09573) as a forward process: each block of a row is masked by itself.

A row is cut into blocks of `size` positions; block b is predicted from the clean blocks before it and its own
noisy state (`unmask.models.attention`). Every block is a *unit* with a mask rate, or a chain, of its own. So blocks
are folded into rows of their own, and what draws masks for rows draws them for blocks: noise, rates, mask rules,
couplings and chains are the same code. With `size` of at least L it is ordinary masked diffusion; with size 1, an
exact count and a shifted read-out it is autoregressive training, and its ELBO the exact negative log-likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, TokenBatch
from unmask.config import require
from unmask.data.stream import RowStream
from unmask.distributed import gather_counts
from unmask.fitted_times import is_fitted
from unmask.policies import resolve, stored
from unmask.processes.base import ForwardProcess
from unmask.processes.blocks import Blocks
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import ProgressiveProcess, ProgressiveUnmasking
from unmask.schedules import Schedule, check_schedule, integer_at
from unmask.times import TimeDistribution


@dataclass(frozen=True)
class Blockwise:
    """Each block of `size` positions is masked by itself, as `masking` says.

    Attributes:
        masking: of a block: `IndependentMasking`, with a time distribution that does not learn during training, or
            `ProgressiveUnmasking`. Its units are blocks: strata are over all blocks of the global batch. Pairs
            are pairs of rows, each block with its own rate and field.
        size: positions of a block, a number or a `Schedule` of them (a curriculum from 1 to L, say). At least L:
            no blocks. `unmask.schedules.doubling` grows them from 1.
        causal: share of the rows of a step, in [0, 1), that are trained autoregressively instead: every token from
            the clean ones before it, as with blocks of one position. The co-loss of NBDiff and LLaDA2: in
            expectation the ELBO's loss is (1 - causal) times the blocks' and causal times the exact negative
            log-likelihood; other objectives refuse it. What is less than a row is carried to the next step.
    """

    masking: IndependentMasking | ProgressiveUnmasking
    size: Schedule
    causal: float = 0.0

    def __post_init__(self) -> None:
        check_schedule("size", self.size, lambda size: size >= 1, "a positive number of positions", whole=True)
        require(0 <= self.causal < 1, f"causal is a share in [0, 1), got {self.causal}")
        if isinstance(self.masking, ProgressiveUnmasking) and resolve(self.masking.policy) is stored:
            raise ValueError(
                "an order stored for whole rows tells a block of the blocks behind it: use another policy"
            )
        if self.causal and not isinstance(self.masking, IndependentMasking):
            raise ValueError("causal rows go with IndependentMasking: a chain has no place for them")
        if isinstance(self.masking, IndependentMasking) and is_fitted(self.masking.time):
            raise ValueError(
                f"{self.masking.time} learns from whole rows, and here each block has a rate of its own: use a "
                "fixed time distribution"
            )

    @property
    def has_density(self) -> bool:
        """Whether the masking of a block has one: rate and density are stated block by block."""
        return self.masking.has_density

    @property
    def peeks(self) -> bool:
        """That of the masking of a block."""
        return self.masking.peeks

    @property
    def support(self) -> tuple[float, float]:
        """That of the masking of a block."""
        return self.masking.support

    def cut(self, length: int, step: int = 0) -> Blocks:
        """How rows of `length` positions are cut at `step`."""
        return Blocks.of(length, integer_at(self.size, step))

    def assemble(
        self,
        clean: TokenBatch,
        blocks: Blocks,
        t: Tensor,
        time: TimeDistribution,
        uniform: Tensor,
        other: Tensor | None,
    ) -> MaskedBatch:
        """Make rows from clean rows and the rates and uniforms of their blocks: no randomness of its own.

        Args:
            clean: U rows.
            blocks: how they are cut.
            t: [U · blocks] rates, block by block.
            time: the distribution that they were drawn from.
            uniform: [U · blocks, size] field of each block.
            other: as `uniform`, second field, read with `mirror_below` alone.

        Returns:
            The batch of U rows, or 2U in pairs. Blocks without a maskable position carry no mask.
        """
        assert isinstance(self.masking, IndependentMasking)
        units = blocks.units(clean)
        batch = self.masking.assemble(units, t, time, uniform, other)
        each = len(batch) // len(units)
        assert batch.rate is not None
        assert batch.density is not None
        row = torch.arange(len(clean), device=clean.tokens.device).repeat_interleave(each)
        masked, rate, density = (
            blocks.unfold(x.expand(batch.masked.shape), each) for x in (batch.masked, batch.rate, batch.density)
        )
        return MaskedBatch(clean[row], masked, rate, density, blocks.numbers(masked))

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> ForwardProcess:
        """Start drawing. `batch_size` counts the rows of a step over all ranks together.

        Raises:
            ValueError: where ranks and units do not divide the batch.
        """
        if isinstance(self.masking, IndependentMasking):
            return IndependentBlocks(self, self.masking, rows, batch_size, seed, device)
        return ProgressiveProcess(self.masking, rows, batch_size, seed, device, self.size)


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

    def _masked(self, clean: TokenBatch) -> MaskedBatch:
        # Strata count the blocks of the longest row of the global batch, so every rank pads to that.
        clean = clean.padded(max(gather_counts(clean.length, self.rows.world_size)))
        blocks = self.blockwise.cut(clean.length, self.step)
        fields = self._fields(blocks.units(clean))
        batch = self.blockwise.assemble(clean, blocks, self._rates(blocks.count), self.time, *fields)
        if not self.blockwise.causal:
            return batch
        # Evenly among the units of all steps, so that it matters to none which rank draws them.
        first = self.step * self.units + self.rows.rank * self.local_units
        passed = ((first + torch.arange(len(clean) + 1)) * self.blockwise.causal + 1e-9).floor()
        return _with_causal_rows(batch, passed.diff().repeat_interleave(self.config.rows_per_unit) > 0)


def _with_causal_rows(batch: MaskedBatch, causal: Tensor) -> MaskedBatch:
    """The batch with some rows [B] trained from left to right: each token a block of its own, and masked."""
    assert batch.rate is not None
    assert batch.density is not None
    assert batch.block is not None
    rows = causal.to(batch.masked.device)[:, None]
    place = torch.arange(batch.clean.length, device=batch.masked.device)
    return replace(
        batch,
        masked=torch.where(rows, batch.clean.maskable, batch.masked),
        rate=torch.where(rows, 1.0, batch.rate),
        density=torch.where(rows, 1.0, batch.density),
        block=torch.where(rows, place, batch.block),
    )

"""Independent masking: every row's rate and mask are drawn without regard to the model.

Composes a time distribution, a coupling of the rates within the global batch, a mask rule and mirrored
pairs. All of them are functions of uniform numbers, so every combination keeps the exact marginal density
of each row's rate and mask (docs/estimators.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.stream import RowStream
from unmask.masks import Bernoulli, MaskRule
from unmask.processes.base import local_size
from unmask.times import TimeDistribution, Uniform

Coupling = Literal["independent", "stratified", "antithetic"]
COUPLINGS: tuple[Coupling, ...] = ("independent", "stratified", "antithetic")


@dataclass(frozen=True)
class IndependentMasking:
    """Masking drawn independently of the model.

    Attributes:
        time: distribution of the mask rate t.
        mask: given t, which positions: `Bernoulli` or `ExactCount`.
        coupling: of the rates within one global batch. "independent"; "stratified" (StraTS, one unit in each
            of equally many strata of the quantile); "antithetic" (pairs at quantiles u and 1 - u: SyRM of
            arXiv 2511.18159 as we read it).
        mirror: units of two rows that share clean row, rate and one field of uniforms seen from both ends,
            {u < t} and {u > 1 - t} (MIRROR, arXiv 2511.18159).
        mirror_below: mirror only units with t below this; above it, where mirrored masks would overlap almost
            wholly, the second row of the unit takes a field of its own.
    """

    time: TimeDistribution = field(default_factory=Uniform)
    mask: MaskRule = field(default_factory=Bernoulli)
    coupling: Coupling = "independent"
    mirror: bool = False
    mirror_below: float = 1.0

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {self.coupling!r}")
        if not 0 < self.mirror_below <= 1:
            raise ValueError(f"mirror_below must be in (0, 1], got {self.mirror_below}")
        if self.mirror_below < 1 and not self.mirror:
            raise ValueError("mirror_below says below which rate pairs are mirrored: set mirror=True too")

    @property
    def has_density(self) -> bool:
        """Always: the density is the time distribution's."""
        return True

    @property
    def support(self) -> tuple[float, float]:
        """The time distribution's."""
        return self.time.support

    @property
    def reads_second_field(self) -> bool:
        """Whether some mirrored units need a second, independent field of uniforms."""
        return self.mirror and self.mirror_below < 1

    def quantiles(self, uniform: Tensor, stratum: Tensor) -> Tensor:
        """Couple the uniforms of the global batch's units into quantiles of the time distribution.

        Args:
            uniform: [U] independent uniforms, one for each unit.
            stratum: [U] a permutation of range(U).

        Returns:
            [U] quantiles, each uniform on (0, 1) by itself.
        """
        if self.coupling == "stratified":
            return (stratum + uniform) / len(uniform)
        if self.coupling == "antithetic":
            first = uniform[0::2].repeat_interleave(2)
            return torch.where(torch.arange(len(uniform)) % 2 == 0, first, 1 - first)
        return uniform

    def fields(self, uniform: Tensor, other: Tensor | None, t: Tensor) -> Tensor:
        """Spread one field of uniforms for each unit [U, L] over the rows of the units.

        Args:
            uniform: [U, L] the unit's field.
            other: [U, L] a second, independent field, for units with t at or above `mirror_below`.
            t: [U] the unit's rate.

        Returns:
            [U, L], or [2U, L] with mirroring: row 2i sees u, row 2i + 1 sees 1 - u.
        """
        if not self.mirror:
            return uniform
        second = 1 - uniform
        if other is not None:
            second = torch.where((t < self.mirror_below)[:, None], second, other)
        return torch.stack([uniform, second], 1).flatten(0, 1)

    def assemble(
        self,
        clean: TokenBatch,
        t: Tensor,
        time: TimeDistribution,
        uniform: Tensor,
        other: Tensor | None,
        group: Tensor,
    ) -> MaskedBatch:
        """Make the rows of units from their clean rows, rates and uniforms: no randomness of its own.

        Args:
            clean: U rows, one for each unit.
            t: [U] rates.
            time: the distribution that they were drawn from.
            uniform: [U, L] field of each unit.
            other: [U, L] second field, read with `mirror_below` alone.
            group: [U] group of each unit.

        Returns:
            The batch of U rows, or 2U with mirroring.
        """
        rate, density = self.mask.rate_and_density(t, clean.effective_length.to(t.device), time)
        device = clean.tokens.device
        t, rate, density, group = (x.to(device) for x in (t, rate[:, None], density[:, None], group))
        fields = self.fields(uniform, other, t)
        row = torch.arange(len(clean), device=device).repeat_interleave(2 if self.mirror else 1)
        clean, rate, density = clean[row], rate[row], density[row]
        masked = self.mask.choose(fields, rate, clean.maskable)
        return MaskedBatch(clean, masked, rate, density, group[row])

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> IndependentProcess:
        """Start drawing. `batch_size` counts the rows (forwards) of a step over all ranks together.

        Raises:
            ValueError: where ranks and units do not divide the batch.
        """
        return IndependentProcess(self, rows, batch_size, seed, device)


class IndependentProcess:
    """The running process of `IndependentMasking`. Its state is the step number and the stream's position."""

    def __init__(
        self,
        config: IndependentMasking,
        rows: RowStream,
        batch_size: int,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        self.config, self.rows, self.seed, self.device = config, rows, seed, device
        self.rows_per_unit = 2 if config.mirror else 1
        local = local_size(batch_size, rows.world_size, self.rows_per_unit)
        self.units = batch_size // self.rows_per_unit
        self.local_units = local // self.rows_per_unit
        if config.coupling == "antithetic" and self.units % 2:
            raise ValueError(f"antithetic coupling pairs units, but batch_size {batch_size} has {self.units} of them")
        self.time = config.time.start()
        self.step = 0
        self._last: MaskedBatch | None = None

    @property
    def needs(self) -> tuple[str, ...] | None:
        """No statistics; but the losses, where the time distribution or the row weights learn from them."""
        return () if self.time.learns or self.rows.importance is not None else None

    def draw(self) -> MaskedBatch:
        """Draw the next step's rows of this rank."""
        config, clean = self.config, self.rows.take(self.local_units).to(self.device)
        first = self.rows.rank * self.local_units
        here = slice(first, first + len(clean))
        t = self.time.quantile(self._quantiles(self.units)[here])
        group = self._groups(self.units)[here]
        uniform = self._uniforms(clean, noise.Purpose.MASK)
        other = self._uniforms(clean, noise.Purpose.MIRROR) if config.reads_second_field else None
        self.step += 1
        batch = config.assemble(clean, t, self.time, uniform, other, group)
        self._last = batch if self.needs is not None else None
        return batch

    def observe(self, scores: Scores | None) -> None:
        """Tell the losses of the last draw to what learns from them: the time distribution, the row weights.

        These masks themselves do not depend on the model.
        """
        if self._last is None:
            return
        if scores is None or scores.nll is None:
            raise ValueError(f"{self.config} learns from the losses: give observe() scores that hold the nll")
        batch, self._last = self._last, None
        assert batch.rate is not None
        loss = (scores.nll.double() / batch.rate).sum(1) / batch.clean.effective_length
        if self.time.learns:
            self.time.observe(batch.rate[:, 0].cpu(), loss.cpu(), self.rows.world_size)
        self.rows.observe(batch.clean.row.cpu(), loss.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Step number, the stream's position, and what the time distribution has learnt."""
        return {"step": self.step, "rows": self.rows.state_dict(), "time": self.time.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rows.load_state_dict(state["rows"])
        self.time.load_state_dict(state["time"])
        self.step = int(state["step"])

    def _quantiles(self, units: int) -> Tensor:
        """[units] coupled quantiles of this step, over all ranks."""
        uniform = noise.slot_uniforms(self.seed, self.step, torch.arange(units))
        order = noise.permutation(self.seed, self.step, units, purpose=noise.Purpose.STRATUM)
        return self.config.quantiles(uniform, order)

    def _groups(self, units: int) -> Tensor:
        """[units] groups of this step: units with coupled rates share one."""
        unit = torch.arange(units)
        return {
            "independent": self.step * self.units + unit,
            "antithetic": self.step * self.units + unit // 2,
            "stratified": torch.full_like(unit, self.step),
        }[self.config.coupling]

    def _uniforms(self, clean: TokenBatch, purpose: noise.Purpose) -> Tensor:
        return noise.uniforms(self.seed, clean.row, clean.draw, clean.length, purpose=purpose)

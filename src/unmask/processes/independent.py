"""Independent masking: every row's rate and mask are drawn without regard to the model.

Composes a time distribution, a coupling of the rates within the global batch, a mask rule and pairs of rows. All of
them are functions of uniform numbers, so every combination keeps the exact marginal density of each row's rate and
mask (docs/estimators.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.stream import RowStream
from unmask.fitted_times import RunningTime, is_fitted, learning, started
from unmask.masks import Bernoulli, MaskRule
from unmask.processes.base import check_kind, local_size
from unmask.times import TimeDistribution, Uniform, check_law
from unmask.token_rates import TokenRates

Coupling = Literal["independent", "stratified", "antithetic"]
COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)
Pair = Literal["mirror", "complement"]


@dataclass(frozen=True)
class IndependentMasking:
    """Masking drawn independently of the model.

    Attributes:
        time: distribution of the mask rate t.
        mask: given t, which positions: `Bernoulli`, `ExactCount`, or a rule of `unmask.token_rates`.
        coupling: of the rates within one global batch. "independent"; "stratified" (StraTS of arXiv 2511.18159,
            with one unit in each of equally many strata of the quantile, where the paper has ⌈√n⌉ strata);
            "antithetic" (pairs at quantiles u and 1 - u; ours).
        pair: units of two rows that share the clean row. "mirror": one rate t and one field of uniforms seen from
            both ends, {u < t} and {u > 1 - t} (MIRROR, arXiv 2511.18159). "complement": a mask and its complement,
            at rates t and 1 - t, so that every token is trained once. None: units are rows.
        mirror_below: mirror only units with t below this; above it, where mirrored masks would overlap almost
            wholly, the second row of the unit takes a field of its own.
    """

    time: TimeDistribution = field(default_factory=Uniform)
    mask: MaskRule = field(default_factory=Bernoulli)
    coupling: Coupling = "independent"
    pair: Pair | None = None
    mirror_below: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.mirror_below <= 1:
            raise ValueError(f"mirror_below must be in (0, 1], got {self.mirror_below}")
        if self.mirror_below < 1 and self.pair != "mirror":
            raise ValueError("mirror_below says below which rate pairs are mirrored: set pair='mirror' too")
        if self.pair == "complement" and not self.mask.has_complement:
            raise ValueError(f"{self.mask} has no complementary pairs: use Bernoulli or ExactCount")
        if not is_fitted(self.time):
            check_law(self.time)
        if self.mask.by_token and learning(self.time) is not None:
            raise ValueError(f"{self.time} learns from the rates of rows, and {self.mask} has a rate for each token")
        if isinstance(self.mask, TokenRates) and is_fitted(self.time):
            raise ValueError(
                f"{self.time} is fitted to losses measured up to t = 1, where weights of {self.mask} have no "
                "bound: use a fixed time distribution (Uniform, Bell, Clipped), or the masks Bernoulli or ExactCount"
            )

    @property
    def has_density(self) -> bool:
        """Always: the density is the time distribution's."""
        return True

    @property
    def peeks(self) -> bool:
        """Whether masks depend on the tokens that they hide: the mask rule's."""
        return self.mask.peeks

    @property
    def support(self) -> tuple[float, float]:
        """The time distribution's; for complementary pairs what the rule makes of t and 1 - t together."""
        support = self.time.support
        return self.mask.complement_support(*support) if self.pair == "complement" else support

    @property
    def rows_per_unit(self) -> int:
        """Rows (forwards) that a clean row becomes."""
        return 1 if self.pair is None else 2

    @property
    def reads_second_field(self) -> bool:
        """Whether some mirrored units need a second, independent field of uniforms."""
        return self.mirror_below < 1

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

    def second_field(self, uniform: Tensor, other: Tensor | None, t: Tensor) -> Tensor:
        """The field that the second row of each mirrored unit sees, [U, L].

        Args:
            uniform: [U, L] the unit's field.
            other: [U, L] a second, independent field, for units with t at or above `mirror_below`.
            t: [U] the unit's rate.
        """
        mirrored = 1 - uniform
        return mirrored if other is None else torch.where((t < self.mirror_below)[:, None], mirrored, other)

    def assemble(
        self,
        clean: TokenBatch,
        t: Tensor,
        time: TimeDistribution,
        uniform: Tensor,
        other: Tensor | None,
    ) -> MaskedBatch:
        """Make the rows of units from their clean rows, rates and uniforms: no randomness of its own.

        Args:
            clean: U rows, one for each unit.
            t: [U] rates.
            time: the distribution that they were drawn from.
            uniform: [U, L] field of each unit.
            other: [U, L] second field, read with `mirror_below` alone.

        Returns:
            The batch of U rows, or 2U in pairs, those of a unit next to one another.
        """
        near = clean.to(t.device)
        rate, density = self.mask.rate_and_density(t, near, time)
        if self.pair == "complement":
            density = self.mask.complement_density(rate, near, time)
        device = clean.tokens.device
        t, rate, density = (x.to(device) for x in (t, rate, density))
        masked = [self.mask.choose(uniform, rate, clean.maskable)]
        rates = [rate] * self.rows_per_unit
        if self.pair == "mirror":
            masked.append(self.mask.choose(self.second_field(uniform, other, t), rate, clean.maskable))
        elif self.pair == "complement":
            masked.append(clean.maskable & ~masked[0])
            rates[1] = 1 - rate
        row = torch.arange(len(clean), device=device).repeat_interleave(self.rows_per_unit)
        masks, rate = (torch.stack(parts, 1).flatten(0, 1) for parts in (masked, rates))
        return MaskedBatch(clean[row], masks, rate, density[row])

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
        local = local_size(batch_size, rows.world_size, config.rows_per_unit)
        self.units = batch_size // config.rows_per_unit
        self.local_units = local // config.rows_per_unit
        if config.coupling == "antithetic" and self.units % 2:
            raise ValueError(f"antithetic coupling pairs units, but batch_size {batch_size} has {self.units} of them")
        self.time = started(config.time)
        self.step = 0
        self._last: MaskedBatch | None = None

    @property
    def needs(self) -> tuple[str, ...] | None:
        """No statistics; but the losses, where the time distribution or the row weights learn from them."""
        return () if learning(self.time) is not None or self.rows.importance is not None else None

    def draw(self) -> MaskedBatch:
        """Draw the next step's rows of this rank."""
        batch = self._masked(self.rows.take(self.local_units))
        self.step += 1
        if self.step > 1:  # fetch the next rows meanwhile; who evaluates draws once
            self.rows.expect(self.local_units)
        self._last = batch if self.needs is not None else None
        return batch.to(self.device)

    def _masked(self, clean: TokenBatch) -> MaskedBatch:
        """The step's batch, of its clean rows on this rank."""
        return self.config.assemble(clean, self._rates(), self.time, *self._fields(clean))

    def observe(self, scores: Scores | None) -> None:
        """Tell the losses of the last draw to what learns from them: the time distribution, the row weights.

        These masks themselves do not depend on the model.
        """
        if self._last is None:
            return
        batch = self._last
        if scores is None or scores.nll is None or scores.nll.shape != batch.masked.shape:
            raise ValueError(
                f"{self.config} learns from the losses: give observe() scores that hold the nll of all "
                f"{tuple(batch.masked.shape)} positions"
            )
        self._last = None
        assert batch.rate is not None
        nll = scores.nll.cpu().double().where(batch.masked, 0)  # elsewhere scores have no meaning
        # A complement may have the rate 0: no mask, no loss, and nothing to learn of a rate.
        loss = (nll / batch.rate.clamp(min=1e-12)).sum(1) / batch.clean.effective_length
        law = learning(self.time)
        if law is not None:
            drawn = batch.rate[:, 0] > 0
            weighted = loss * batch.clean.weight  # as it is trained
            law.observe(batch.rate[drawn, 0], weighted[drawn], self.rows.world_size)
        self.rows.observe(batch.clean.row, loss)

    def state_dict(self) -> dict[str, Any]:
        """Step number, the stream's position, and what the time distribution has learnt."""
        learnt = self.time.state_dict() if isinstance(self.time, RunningTime) else {}
        return {"step": self.step, "rows": self.rows.state_dict(), "time": learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        check_kind(state, "rows", "time", "step")
        self.rows.load_state_dict(state["rows"])
        if isinstance(self.time, RunningTime):
            self.time.load_state_dict(state["time"])
        elif state["time"]:
            raise ValueError(f"{self.time} keeps no state, but the checkpoint holds {sorted(state['time'])}")
        self.step = int(state["step"])

    def _rates(self, each: int = 1) -> Tensor:
        """Rates of this rank's units at this step, `each` for a unit, coupled over all ranks."""
        count, own = self.units * each, self.local_units * each
        uniform = noise.slot_uniforms(self.seed, self.step, torch.arange(count))
        order = noise.permutation(self.seed, self.step, count, purpose=noise.Purpose.STRATUM)
        quantiles = self.config.quantiles(uniform, order)
        return self.time.quantile(quantiles[self.rows.rank * own :][:own])

    def _fields(self, units: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Uniforms of the units, [U, L], and a second field of them where one is read."""

        def uniforms(purpose: noise.Purpose) -> Tensor:
            return noise.uniforms(self.seed, units.row, units.draw, units.length, purpose=purpose)

        second = uniforms(noise.Purpose.MIRROR) if self.config.reads_second_field else None
        return uniforms(noise.Purpose.MASK), second

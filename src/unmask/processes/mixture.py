"""A mix of progressive unmasking and independent masks in one batch, by a share that may change with the step.

The slots of the global batch are dealt anew each step: a share of them takes independent draws, the others the
chains of the pool. Both parts pull from one stream, and each keeps its own state: a chain whose slot is taken
by an independent row waits as it is, and goes on when the slot is its own again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.data.stream import RowStream
from unmask.masks import MaskRule
from unmask.processes.independent import IndependentMasking, IndependentProcess
from unmask.processes.progressive import ProgressiveProcess, ProgressiveUnmasking
from unmask.schedules import Schedule, check_schedule, corners, value_at
from unmask.times import TimeDistribution


@dataclass(frozen=True)
class Mixture:
    """Progressive unmasking with a share of independently masked rows.

    Attributes:
        progressive: draws the rest of the rows.
        independent: draws the share.
        share: of the rows of each global batch that are masked independently: a `Schedule` of values in [0, 1],
            rounded to whole units of `independent`. ((0, 1.0), (500, 0.0)) delays PUMA by 500 steps. A schedule of
            the stages counts the same steps.
    """

    progressive: ProgressiveUnmasking = field(default_factory=ProgressiveUnmasking)
    independent: IndependentMasking = field(default_factory=IndependentMasking)
    share: Schedule = 0.5

    def __post_init__(self) -> None:
        check_schedule("share", self.share, lambda share: 0 <= share <= 1, "a share in [0, 1]")

    @property
    def has_density(self) -> bool:
        """Never: that of its chains is intractable."""
        return False

    @property
    def support(self) -> tuple[float, float]:
        """From the lower of the two lower ends to the higher of the two upper ends."""
        (a, b), (c, d) = self.progressive.support, self.independent.support
        return min(a, c), max(b, d)

    @property
    def mask(self) -> MaskRule:
        """Mask rule of the independent part, for what measures the model under it."""
        return self.independent.mask

    def start(
        self, rows: RowStream, batch_size: int, seed: int = 0, device: torch.device | str | None = None
    ) -> MixtureProcess:
        """Start both parts. `batch_size` counts the rows (forwards) of a step over all ranks together.

        Raises:
            ValueError: where ranks and units do not divide the batch, or a share above 0 or below 1 rounds to
                none or all of its rows.
        """
        return MixtureProcess(self, rows, batch_size, seed, device)


class MixtureProcess:
    """The running mix. A step's rows are those of the chains, then those drawn independently."""

    def __init__(
        self, config: Mixture, rows: RowStream, batch_size: int, seed: int, device: torch.device | str | None
    ) -> None:
        self.config, self.rows = config, rows
        self.independent = IndependentProcess(config.independent, rows, batch_size, seed, device)
        for share in corners(config.share):
            if 0 < share < 1 and self._drawn(share) in (0, self.independent.units):
                raise ValueError(
                    f"a share of {share} of {batch_size} rows rounds to none or all of them; use a larger batch"
                )
        nobody = torch.zeros(batch_size, dtype=torch.bool)
        self.progressive = ProgressiveProcess(config.progressive, rows, batch_size, seed, device, active=nobody)
        self._shape = torch.Size((0, 0))

    @property
    def step(self) -> int:
        """Steps drawn so far."""
        return self.independent.step

    @property
    def time(self) -> TimeDistribution:
        """The independent part's running time distribution."""
        return self.independent.time

    @property
    def needs(self) -> tuple[str, ...]:
        """What either part wants."""
        return tuple(dict.fromkeys((*self.progressive.needs, *(self.independent.needs or ()))))

    @property
    def metrics(self) -> dict[str, float]:
        """The chains' metrics, and the share of independent rows in the last batch."""
        drawn = self._drawn(value_at(self.config.share, max(0, self.step - 1)))
        return {**self.progressive.metrics, "independent_share": drawn / self.independent.units}

    def draw(self) -> MaskedBatch:
        """Draw the next step's rows of this rank."""
        units = self.independent.units
        drawn = self._drawn(value_at(self.config.share, self.step))
        active = _spread_order(units) >= units - drawn
        self.progressive.select(~active.repeat_interleave(self.independent.rows_per_unit))
        chains, draws = self.progressive.draw(), self.independent.draw(active)
        draws = replace(draws, density=None, group=-1 - draws.group)  # chains are grouped by row numbers, from 0 up
        batch = _joined(chains, draws)
        self._shape = batch.masked.shape
        return batch

    def observe(self, scores: Scores | None) -> None:
        """Give each part the scores of its rows.

        Raises:
            ValueError: for missing or misshapen scores.
        """
        if scores is None or scores.log_confidence.shape != self._shape:
            got = None if scores is None else tuple(scores.log_confidence.shape)
            raise ValueError(f"the mix needs the scores of all {tuple(self._shape)} positions, got {got}")
        count, length = len(self.progressive.running), self.progressive.clean.length
        self.progressive.observe(scores[:count].map(lambda value: value[:, :length]))
        self.independent.observe(scores[count:])

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"progressive": self.progressive.state_dict(), "independent": self.independent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.progressive.load_state_dict(state["progressive"])
        self.independent.load_state_dict(state["independent"])

    def _drawn(self, share: float) -> int:
        """Units of the global batch that are drawn independently: whole pairs of them under antithetic coupling."""
        together = 2 if self.config.independent.coupling == "antithetic" else 1
        return together * round(share * self.independent.units / together)


def _spread_order(size: int) -> Tensor:
    """[size] the turn in which each slot becomes a chain's: any first few turns lie evenly over the slots.

    So every rank gets its part of the chains, and those that wait while the share is high are always the last.
    The turns follow the van der Corput sequence: the slots' numbers with their bits reversed.
    """
    bits = max(1, (size - 1).bit_length())
    slot = torch.arange(size)
    mirrored = sum((((slot >> b) & 1) << (bits - 1 - b) for b in range(bits)), torch.zeros_like(slot))
    return mirrored.argsort().argsort()


def _joined(first: MaskedBatch, second: MaskedBatch) -> MaskedBatch:
    """The rows of two batches as one, padded to one length; without a density."""
    length = max(first.clean.length, second.clean.length)
    parts = [replace(part, clean=part.clean.padded(length)) for part in (first, second)]

    def widened(masked: Tensor) -> Tensor:
        return torch.nn.functional.pad(masked, (0, length - masked.shape[1]))

    names = ("tokens", "maskable", "attention", "row", "draw", "weight")
    clean = TokenBatch(**{name: torch.cat([getattr(part.clean, name) for part in parts]) for name in names})
    masked = torch.cat([widened(part.masked) for part in parts])
    rates = [part.rate for part in parts if part.rate is not None]
    return MaskedBatch(clean, masked, torch.cat(rates), None, torch.cat([part.group for part in parts]))

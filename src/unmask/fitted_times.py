"""Time distributions that are fitted to the model during training.

A config (`FittedTime`) starts a law that changes (`RunningTime`). A process has no model: it draws from the law and
tells it the losses of its steps. Whoever trains asks the law before each step whether it is `due`, measures what it
`measures` on held-out rows, and gives it the answer in `refit` (docs/decisions, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unmask.batch import Tensors
from unmask.times import TimeDistribution


@dataclass(frozen=True)
class Measurement:
    """What a running law wants to know of the current model, on held-out rows, for its next `refit`.

    Attributes:
        rates: ascending, in (0, 1].
        rows: held-out rows, the same at every rate.
        masks: masks of each row at each rate.
        moment: of the "loss" of one row, Σ nll / (rate · L_eff) in nats per token, or of its "gradient" with
            respect to the trained parameters, one backward for each row, rate and mask.
        variance: over all rows and masks ("total"), or the mean over rows of that over the masks of one row
            ("within").
    """

    rates: tuple[float, ...]
    rows: int
    masks: int
    moment: Literal["loss", "gradient"] = "loss"
    variance: Literal["total", "within"] = "total"


@dataclass(frozen=True)
class RateProfile(Tensors):
    """Loss or gradient of one row against its mask rate: the answer to a `Measurement`.

    Attributes:
        t: [G] rates, ascending, in (0, 1].
        mean: [G] g(t), the mean loss or the length of the mean gradient; its square is unbiased.
        variance: [G] v(t), the variance of the loss, or the trace of the gradient's covariance, total or within rows.
    """

    t: Tensor
    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        if not bool((self.t > 0).all() and (self.t <= 1).all() and (self.t.diff() > 0).all()):
            raise ValueError("a profile needs ascending rates in (0, 1]")


class FittedTime(TimeDistribution):
    """Config of a law that is fitted to the model: no law by itself, `start` makes one."""

    def start(self) -> RunningTime:
        """The law before its first fit."""
        raise NotImplementedError


class RunningTime(TimeDistribution):
    """A law that is fitted to the model during training. A new one defines `due`, `refit` and the state besides.

    It learns from the losses of the steps, if it `learns`, or from what is measured as `measures` asks.
    """

    @property
    def learns(self) -> bool:
        """Whether it wants `observe` called with the losses of each step."""
        return False

    @property
    def fitted(self) -> bool:
        """Whether a fit has made it other than what it begins as; True, unless it says."""
        return True

    def observe(self, rate: Tensor, loss: Tensor, world_size: int = 1) -> None:
        """Take this rank's rates [B] and losses [B] of a step (Σ nll / (rate · L_eff) of each row), if it learns.

        What is kept is summed over ranks, so that all ranks agree.
        """
        raise NotImplementedError

    @property
    def measures(self) -> Measurement | None:
        """What must be measured on held-out rows for `refit`; None if nothing."""
        return None

    def due(self, step: int) -> bool:
        """Whether `refit` is due after `step` steps."""
        raise NotImplementedError

    def refit(self, profile: RateProfile | None = None) -> None:
        """Take in what was measured, or, without it, what was observed."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What was learnt last, as JSON values for the log; nothing, unless it says."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep of it."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        raise NotImplementedError


def started(time: TimeDistribution) -> TimeDistribution:
    """The law that a running process draws from: `time` itself, unless it is to be fitted."""
    return time.start() if isinstance(time, FittedTime) else time


def learning(time: TimeDistribution) -> RunningTime | None:
    """The law that a process draws from, where that learns from the losses of the steps."""
    law = started(time)
    return law if isinstance(law, RunningTime) and law.learns else None


def measured_for(time: TimeDistribution | None) -> Measurement | None:
    """What must be measured of the model for the law that a process draws from; None if nothing."""
    law = None if time is None else started(time)
    return law.measures if isinstance(law, RunningTime) else None


def is_fitted(time: object) -> bool:
    """Whether it is fitted to the model: the config, or the law that it started."""
    return isinstance(time, FittedTime | RunningTime)

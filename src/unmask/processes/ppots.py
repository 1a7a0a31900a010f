"""P-POTS: the mask rates at which training losses are noisiest, fitted to measurements (arXiv 2511.18159).

Among unbiased samplers of t, weighted by 1/p(t), the variance of the loss is least for

    p*(t) ∝ sqrt(g(t)² + v(t)),

with g the mean and v the variance, over rows and masks, of the 1/t-weighted loss of one row at rate t. The paper's v
is the mean over rows of the variance within a row (`variance="within"`); with all rows and masks, ours, p* is the
minimiser of the whole A + B + C. g and v are measured on a grid and fitted by the paper's EPR family (epr.py). A
share of uniform keeps the whole of (0, 1] in the support (ours).

The paper fits once, before training, on 70 rates × 15 rows × 15 masks: PPOTS(grid=70, rows=15, masks=15,
variance="within"); the defaults, 30 × 10 × 10, are those of its released config, and are fitted anew in training.

For a gradient G of one row instead of its loss, the trace of the covariance of Σ G / p(t) is least for
p*(t) ∝ sqrt(E |G(t)|²). With g = |E G| and v = the trace of G's covariance this is the same formula, and since
KL compares nothing but sqrt(g² + v), the same family serves. That option is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmask.config import ours, positive_int, require
from unmask.distributed import sum_over_ranks
from unmask.fitted_times import FittedTime, Measurement, RateProfile, RunningTime
from unmask.processes.epr import EPRFit, fit_epr
from unmask.times import TimeDistribution

BINS = 1024


class Tabulated(TimeDistribution):
    """Base of densities that are constant on equal bins of (0, 1]; exact CDF, inverse and density.

    Args:
        mass: [N] probability of each bin, all positive; it is normalised.
    """

    def __init__(self, mass: Tensor) -> None:
        self.mass = mass

    @property
    def mass(self) -> Tensor:
        """[N] float64 probability of each bin."""
        return self._mass

    @mass.setter
    def mass(self, mass: Tensor) -> None:
        mass = mass.double()
        if mass.dim() != 1 or not bool((mass > 0).all() and mass.isfinite().all()):
            raise ValueError("a tabulated density needs a positive, finite mass in every bin")
        self._mass = mass / mass.sum()
        self._edges = torch.cat([mass.new_zeros(1), self._mass.cumsum(0)])
        self._edges[-1] = 1.0

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The edges of the bins."""
        return tuple(i / len(self.mass) for i in range(1, len(self.mass)))

    def cdf(self, t: Tensor) -> Tensor:
        """F(t), linear within a bin."""
        place = t.double().clamp(0, 1) * len(self.mass)
        bin_ = place.long().clamp(max=len(self.mass) - 1)
        return self._edges[bin_] + (place - bin_) * (self._edges[bin_ + 1] - self._edges[bin_])

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`."""
        bin_ = (torch.searchsorted(self._edges, u.double().contiguous(), right=True) - 1).clamp(0, len(self.mass) - 1)
        low, high = self._edges[bin_], self._edges[bin_ + 1]
        return (bin_ + ((u - low) / (high - low)).clamp(0, 1)) / len(self.mass)

    def density(self, t: Tensor) -> Tensor:
        """p(t)."""
        bin_ = (t.double().clamp(0, 1) * len(self.mass)).long().clamp(max=len(self.mass) - 1)
        return (self._edges[bin_ + 1] - self._edges[bin_]) * len(self.mass)


@dataclass(frozen=True)
class PPOTS(FittedTime):
    """P-POTS: uniform until the first fit, then p(t) ∝ sqrt(g² + v) of the current model, mixed with uniform.

    A fit costs grid · rows · masks forwards of a row, and as many backwards, one row at a time, for the gradient.

    Attributes:
        refit_every: steps between fits; the first comes after as many.
        grid: rates at which the model is measured, spread evenly over (0, 1].
        rows: rows for each rate; of a run, training rows drawn by its seed.
        masks: masks for each row and rate.
        uniform: share of the uniform density in the mix, in (0, 1]; it bounds the weights by 1 / uniform.
        optimum: "independent": sqrt(g² + v), best for rates drawn independently; "stratified": sqrt(v).
        moment: of a row's "loss" (the paper), or of its "gradient", whose noise is what training feels.
        variance: "total": over all rows and masks, ours; "within": the mean over rows of that within a row (the
            paper).
        online: estimate g and v from the training losses themselves; costs no forward.
        memory: online only: share of the old estimate kept from one fit to the next, in [0, 1).
    """

    refit_every: int = 200
    grid: int = 30
    rows: int = 10
    masks: int = 10
    uniform: float = 0.1
    optimum: Literal["independent", "stratified"] = "independent"
    moment: Literal["loss", "gradient"] = "loss"
    variance: Literal["total", "within"] = "total"
    online: bool = False
    memory: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("refit_every", 1), ("grid", 4), ("rows", 2), ("masks", 1)):
            positive_int(f"PPOTS: {name}", getattr(self, name), least)
        require(0 < self.uniform <= 1, f"PPOTS: uniform is a share in (0, 1], got {self.uniform}")
        require(0 <= self.memory < 1, f"PPOTS: memory is a share in [0, 1), got {self.memory}")
        require(
            not (self.online and self.moment == "gradient"),
            "PPOTS: online estimates come from the losses of the steps: leave out online=True or moment='gradient'",
        )
        require(
            self.variance == "total" or (self.masks >= 2 and not self.online),
            "PPOTS: the variance within a row needs at least 2 masks of it, and no online estimate has them",
        )

    def start(self) -> RunningPPOTS:
        """Uniform rates, to be fitted."""
        return RunningPPOTS(self)


class RunningPPOTS(Tabulated, RunningTime):
    """P-POTS during training: the current density, the last fit and the data it came from."""

    def __init__(self, config: PPOTS) -> None:
        super().__init__(torch.ones(BINS, dtype=torch.float64))
        self.config = config
        self.fit: EPRFit | None = None
        self.profile: RateProfile | None = None
        self._sums = torch.zeros(config.grid, 3, dtype=torch.float64)  # count, Σ loss, Σ loss² by bin of t

    @property
    def learns(self) -> bool:
        """Whether it estimates from the training losses."""
        return self.config.online

    @property
    def measures(self) -> Measurement | None:
        """g and v on the grid, unless they are estimated from the training losses."""
        config = self.config
        if config.online:
            return None
        rates = tuple((i + 1) / config.grid for i in range(config.grid))
        return Measurement(rates, config.rows, config.masks, config.moment, config.variance)

    @property
    def fitted(self) -> bool:
        """Whether it is uniform no more."""
        return self.fit is not None

    def observe(self, rate: Tensor, loss: Tensor, world_size: int = 1) -> None:
        """Add a step's losses to their bins, over all ranks."""
        size = self.config.grid
        # The rate of a count, as 14/50, times the bins may be rounded to just above an edge.
        bin_ = (rate * size * (1 - 2**-51)).ceil().long().clamp(1, size) - 1
        step = torch.stack(
            [torch.bincount(bin_, w.double(), size) for w in (torch.ones_like(loss), loss, loss**2)], 1
        )
        self._sums = self._sums + sum_over_ranks(world_size, step)

    def due(self, step: int) -> bool:
        """Whether a fit is due after `step` steps."""
        return step > 0 and step % self.config.refit_every == 0

    def refit(self, profile: RateProfile | None = None) -> None:
        """Fit anew, to a measured profile or to the training losses seen so far."""
        if profile is None:
            profile = self._seen()
            if profile is None:  # too few losses for a fit: they wait for more
                return
            self._sums = self._sums * self.config.memory
        self._follow(fit_epr(profile, self.config.optimum), profile)

    def _follow(self, fit: EPRFit, profile: RateProfile) -> None:
        middle = (np.arange(BINS) + 0.5) / BINS
        fitted, share = torch.from_numpy(fit.root(middle, self.config.optimum)), self.config.uniform
        self.fit, self.profile = fit, profile
        self.mass = (1 - share) * fitted / fitted.sum() + share / BINS

    def description(self) -> dict[str, Any]:
        """The last fit, its data and its KL, and the density in 32 bins, as JSON values."""
        found: dict[str, Any] = {"density": (self.mass.view(32, -1).sum(1) * 32).tolist()}
        if self.fit is not None and self.profile is not None:
            found |= {name: getattr(self.config, name) for name in ("moment", "optimum", "variance")}
            found |= {"fit": self.fit.parameters, "kl": self.fit.kl}
            found |= {name: values.tolist() for name, values in vars(self.profile).items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The sums, and the last fit with its data; the density follows from the fit."""
        state: dict[str, Any] = {"sums": self._sums}
        if self.fit is not None and self.profile is not None:
            state["fit"] = {"parameters": self.fit.parameters, "kl": self.fit.kl}
            state["profile"] = vars(self.profile)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = state["sums"]
        self.fit, self.profile, self.mass = None, None, torch.ones(BINS)  # as before the first fit
        if "fit" in state:
            self._follow(EPRFit(**state["fit"]), RateProfile(**state["profile"]))

    def _seen(self) -> RateProfile | None:
        count, total, square = self._sums.T
        enough = count >= 2
        if int(enough.sum()) < 4:
            return None
        count, total, square = count[enough], total[enough], square[enough]
        second = square / count
        # The square of a mean holds its noise: g² is what v leaves of the second moment, as where it is measured.
        variance = torch.minimum((square - total**2 / count).clamp(min=0) / (count - 1), second)
        t = ((torch.arange(self.config.grid) + 0.5) / self.config.grid)[enough]
        return RateProfile(t.double(), (second - variance).sqrt(), variance)


ours(PPOTS)

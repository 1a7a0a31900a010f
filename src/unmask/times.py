"""Time distributions: at which mask rate t in (0, 1] is a row trained?

A time distribution is a CDF, its inverse and a density. Couplings act on the quantile u, masks on the rate
t = quantile(u), importance weights on the density, so all of them compose. All functions take and return
float64 tensors of any shape, on the CPU (a step has one rate per row or block: there is nothing to speed up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.special
import torch
from torch import Tensor

from unmask.config import ours, require


class TimeDistribution:
    """A law of mask rates. A new one defines `cdf`, `quantile` and `density`.

    One that is fitted to the model during training is a `unmask.fitted_times.FittedTime`.
    """

    @property
    def support(self) -> tuple[float, float]:
        """The interval (low, high] outside which no rate is drawn."""
        return 0.0, 1.0

    def cdf(self, t: Tensor) -> Tensor:
        """F(t), the probability of a rate of at most t."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """The t with F(t) = u, for u in (0, 1)."""
        raise NotImplementedError

    def density(self, t: Tensor) -> Tensor:
        """p(t) = F'(t)."""
        raise NotImplementedError

    @property
    def effective_sample_size(self) -> float:
        """Share of draws that count under the weight 1 / density: (E w)² / E w², 1 for uniform rates on the support.

        Near 0 where some rates are so rare that their weights have a heavy tail; 0 in the limit where these have no
        second moment (Beta with a shape of 2 or more). By the midpoints of 65,536 cells of the support.
        """
        low, high = self.support
        t = low + (high - low) * (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
        return (high - low) / float((1 / self.density(t)).mean())

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Rates inside (0, 1) at which the density is not smooth; quadrature splits there."""
        return ()


def check_law(time: TimeDistribution, levels: int = 256, nodes: int = 8) -> None:
    """Look whether the three functions of a law are of one law, before it trains anything.

    Args:
        time: the law.
        levels: at so many quantiles.
        nodes: points between two of them at which the density is summed up.

    Raises:
        ValueError: where `quantile` gives rates outside [0, 1], or fewer than levels; where `cdf` does not lead back,
            or `density` does not sum up to it. Rates next to 0 and 1 are left out: laws may round them, and
            densities have no bound there.
    """
    u = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    t = time.quantile(u)
    require(t.shape == u.shape, f"{time}: quantile makes {tuple(t.shape)} rates of {tuple(u.shape)} levels")
    at = _furthest(t - 0.5)
    told = f"{time}: quantile({float(u[at]):.3g}) is {float(t[at]):.3g}"
    require(0 <= float(t[at]) <= 1, f"{told}, which is no rate in [0, 1]")
    back, inside = time.cdf(t), (t > 1e-9) & (t < 1 - 1e-9)
    off = (back - u).where(inside, 0)
    at = _furthest(off)
    told = f"{time}: quantile({float(u[at]):.3g}) is {float(t[at]):.3g}, and cdf of that is {float(back[at]):.3g}"
    require(abs(float(off[at])) < 1e-3, f"{told}: they are not of one law")
    inside[: levels // 32] = inside[-levels // 32 :] = False
    t, u = t[inside], u[inside]
    if len(t) < 2:
        return
    place = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    mass = (time.density(t[:-1, None] + t.diff()[:, None] * place).mean(1) * t.diff()).cumsum(0)
    due = u[1:] - u[0]
    at = _furthest(mass - due)
    told = f"{time}: between the rates {float(t[0]):.3g} and {float(t[at + 1]):.3g} the density has a mass of"
    require(
        abs(float(mass[at] - due[at])) < 0.02,
        f"{told} {float(mass[at]):.3g} and the cdf one of {float(due[at]):.3g}: weights would be of another law",
    )


def _furthest(off: Tensor) -> int:
    """The place of the value that is furthest from zero; one that is no number is further than any."""
    return int(off.abs().nan_to_num(math.inf).argmax())


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """p(t) = 1: every rate alike. The standard choice."""

    def cdf(self, t: Tensor) -> Tensor:
        """F(t) = t."""
        return t.clamp(0, 1)

    def quantile(self, u: Tensor) -> Tensor:
        """Return u itself."""
        return u

    def density(self, t: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class Bell(TimeDistribution):
    """A normal distribution truncated to (0, 1]: mostly middle rates (arXiv 2605.13026).

    The paper's family, mean and width are not known to us; this family and its defaults are our choice.

    Attributes:
        mean: mean of the normal before truncation.
        std: its standard deviation, greater than 0.
    """

    mean: float = 0.5
    std: float = 0.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"Bell: std must be greater than 0, got {self.std}")
        if not self._low + 1e-12 < self._high:
            raise ValueError(
                f"Bell: a normal of mean {self.mean} and std {self.std} has no mass in (0, 1]; move the mean inside"
            )

    @property
    def support(self) -> tuple[float, float]:
        """All of (0, 1], unless the bell is so narrow that uniforms of 53 bits cannot reach the ends."""
        low, high = self.quantile(torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)).tolist()
        return (0.0 if low < 1e-3 else low), (1.0 if high > 1 - 1e-3 else high)

    @property
    def _low(self) -> float:
        return float(scipy.special.ndtr((0 - self.mean) / self.std))

    @property
    def _high(self) -> float:
        return float(scipy.special.ndtr((1 - self.mean) / self.std))

    def cdf(self, t: Tensor) -> Tensor:
        """F(t) = (Φ((t - mean)/std) - Φ(-mean/std)) / (Φ((1 - mean)/std) - Φ(-mean/std))."""
        below = torch.special.ndtr((t.clamp(0, 1) - self.mean) / self.std)
        return (below - self._low) / (self._high - self._low)

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`."""
        z = torch.special.ndtri(self._low + u * (self._high - self._low))
        return (self.mean + self.std * z).clamp(1e-12, 1)

    def density(self, t: Tensor) -> Tensor:
        """p(t) = φ((t - mean)/std) / (std · (Φ((1 - mean)/std) - Φ(-mean/std)))."""
        z = (t - self.mean) / self.std
        return torch.exp(-0.5 * z**2) / ((2 * torch.pi) ** 0.5 * self.std * (self._high - self._low))


@dataclass(frozen=True)
class Beta(TimeDistribution):
    """The Beta(a, b) distribution: p(t) ∝ t^(a-1) (1-t)^(b-1).

    Beta(1, 1) is uniform; a > b leans to high mask rates.

    Attributes:
        a: first shape, greater than 0.
        b: second shape, greater than 0.
    """

    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise ValueError(f"Beta: both shapes must be greater than 0, got a={self.a}, b={self.b}")

    def cdf(self, t: Tensor) -> Tensor:
        """The regularised incomplete beta function I_t(a, b)."""
        return torch.as_tensor(scipy.special.betainc(self.a, self.b, t.clamp(0, 1).numpy(force=True)))

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`."""
        return torch.as_tensor(scipy.special.betaincinv(self.a, self.b, u.numpy(force=True))).clamp(1e-12, 1)

    def density(self, t: Tensor) -> Tensor:
        """p(t) = t^(a-1) (1-t)^(b-1) / B(a, b)."""
        log = torch.xlogy(self.a - 1, t) + torch.special.xlog1py(self.b - 1, -t)
        return torch.exp(log - float(scipy.special.betaln(self.a, self.b)))


@dataclass(frozen=True)
class Clipped(TimeDistribution):
    """Uniform on (low, high]. Its support is not all of (0, 1], so the ELBO refuses it unless it is.

    Attributes:
        low: smallest rate, at least 0.
        high: largest rate, at most 1 and greater than low.
    """

    low: float = 0.3
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Clipped: needs 0 <= low < high <= 1, got low={self.low}, high={self.high}")

    @property
    def support(self) -> tuple[float, float]:
        """(low, high]."""
        return self.low, self.high

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The ends that lie inside: the density falls to 0 there."""
        return tuple(end for end in self.support if 0 < end < 1)

    def cdf(self, t: Tensor) -> Tensor:
        """F(t) = (t - low) / (high - low), clipped to [0, 1]."""
        return ((t - self.low) / (self.high - self.low)).clamp(0, 1)

    def quantile(self, u: Tensor) -> Tensor:
        """t = low + u (high - low)."""
        return self.low + u * (self.high - self.low)

    def density(self, t: Tensor) -> Tensor:
        """1 / (high - low) inside the support, 0 outside."""
        return ((t > self.low) & (t <= self.high)).to(t.dtype) / (self.high - self.low)


ours(Uniform, Bell, Beta, Clipped)

"""The EPR family of P-POTS (arXiv 2511.18159): a formula for the loss against the mask rate, and its fit.

    g(t) = A exp(κ t^m),   v(t) = a t^r + b (1 - t)^q,   A, a, b, κ > 0,  r, q ≥ 0,  m > 1,

so p(t) ∝ sqrt(a t^r + b (1 - t)^q + A² exp(2κ t^m)), by the least KL divergence of the measured density from the
fitted one.

Where the data leave a direction free, a search stops anywhere along it, and last digits of the data decide where: of
two runs that differ in nothing but how a sum was split, the densities came to differ by whole percents. So a trace of
a ridge (ours) makes the minimum one point, and exact slopes find it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from unmask.config import require
from unmask.fitted_times import RateProfile

RIDGE = 1e-6
"""Nats for a squared unit of distance from the first start, in logarithms of parameters."""
RESTARTS = 20
_FIRST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_BOUNDS = [(-18, 8), (-18, 8), (-18, 8), (-8, 4), (-8, 4), (-8, 4), (-8, 3)]
_TINY = 1e-300


@dataclass(frozen=True)
class EPRFit:
    """A fit of the EPR family.

    Attributes:
        parameters: a, r, b, q of v(t) and A, k, m of g(t).
        kl: KL divergence of the measured density from the fitted one on the grid, in nats.
    """

    parameters: dict[str, float]
    kl: float

    def moments(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g(t) and v(t)."""
        rise, fall, mean = _terms(self.parameters, t)
        return mean, rise + fall

    def root(self, t: np.ndarray, optimum: str) -> np.ndarray:
        """The density up to a constant: sqrt(g² + v), or sqrt(v) under stratified rates."""
        mean, variance = self.moments(t)
        return np.sqrt(variance + (mean**2 if optimum == "independent" else 0.0))


def fit_epr(profile: RateProfile, optimum: str = "independent", starts: int = 8) -> EPRFit:
    """Fit the EPR family to a measured profile by the least KL, from several starting points.

    Args:
        profile: at least 4 rates.
        optimum: "independent": sqrt(g² + v); "stratified": sqrt(v).
        starts: number of starting points, from a fixed sequence.

    Raises:
        ValueError: for a profile that is too short, not finite, or zero everywhere.
    """
    t, mean, variance = (x.double().numpy() for x in (profile.t, profile.mean, profile.variance))
    measured = np.sqrt(np.maximum(variance, 0) + (mean**2 if optimum == "independent" else 0.0))
    require(len(t) >= 4, f"P-POTS needs at least 4 rates to fit, got {len(t)}")
    require(bool(np.isfinite(measured).all()) and measured.sum() > 0, "the measured losses are zero or not finite")
    target = np.maximum(measured / measured.sum(), 1e-12)
    scale = max(float(np.mean(measured)), 1e-12)

    def kl(x: np.ndarray) -> tuple[float, np.ndarray]:
        root, slopes = _root_and_slopes(_read(x, scale), t, optimum)
        fitted = root / root.sum()
        return float((target * np.log(target / fitted)).sum()), slopes @ (fitted - target)

    def ridged(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = kl(x)
        away = x - _FIRST
        return value + RIDGE * float(away @ away), slope + 2 * RIDGE * away

    random = np.random.default_rng(0)
    points = [_FIRST, *(np.clip(_FIRST + random.normal(0, 2, 7), -7.5, 2.5) for _ in range(starts - 1))]
    best = min((_minimum(ridged, point) for point in points), key=lambda x: ridged(x)[0])
    return EPRFit(_read(best, scale), kl(best)[0])


def _minimum(of: Callable[[np.ndarray], tuple[float, np.ndarray]], point: np.ndarray) -> np.ndarray:
    """Where a descent from a point ends. One that stops on a slope, its last step too small to tell, goes on."""
    precise = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 20000}
    for _ in range(RESTARTS):
        found = scipy.optimize.minimize(of, point, jac=True, method="L-BFGS-B", bounds=_BOUNDS, options=precise)
        still = np.abs(found.x - point).max() < 1e-6
        point = found.x
        if still or np.abs(found.jac).max() < 1e-8:
            break
    return point


def _read(x: np.ndarray, scale: float) -> dict[str, float]:
    """The parameters of a point of the search, whose coordinates are logarithms, of sizes in units of the data."""
    size = np.exp(x[:3]) * scale ** np.array([2, 2, 1])
    values = (*size, *np.exp(x[3:5]), 1 + np.exp(x[5]), np.exp(x[6]))
    return dict(zip(("a", "b", "A", "r", "q", "m", "k"), map(float, values), strict=True))


def _terms(p: dict[str, float], t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a t^r, b (1 - t)^q and A exp(κ t^m)."""
    return p["a"] * t ** p["r"], p["b"] * (1 - t) ** p["q"], p["A"] * np.exp(p["k"] * t ** p["m"])


def _root_and_slopes(p: dict[str, float], t: np.ndarray, optimum: str) -> tuple[np.ndarray, np.ndarray]:
    """[G] the root, and [7, G] the slopes of its logarithm along the coordinates of the search."""
    rise, fall, mean = _terms(p, t)
    squared = mean**2 if optimum == "independent" else 0.0 * t
    inside = np.maximum(rise + fall + squared, _TINY)
    power = p["k"] * t ** p["m"]
    slopes = [
        rise,
        fall,
        2 * squared,
        rise * p["r"] * np.log(t),
        fall * p["q"] * np.log(np.maximum(1 - t, _TINY)),
        2 * squared * power * (p["m"] - 1) * np.log(t),
        2 * squared * power,
    ]
    return np.sqrt(inside), np.stack(slopes) / (2 * inside)

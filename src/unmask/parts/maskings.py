"""Maskings by name, each with its objective: what a name means here, it means in every recipe, study and table.

A comparison carries the baseline of its field: `standard` is what MDLM trains, `llada` what LLaDA trains,
`uniform-count` what PUMA is compared with, `clipped` the rates in an interval that later models train on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from unmask.config import check_name
from unmask.masks import ExactCount
from unmask.objectives import ELBO, InverseRate, MaskedMean, Objective, RowMean
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.processes.ppots import PPOTS
from unmask.reweighted import CAP, CART, LIFT, PAPL
from unmask.times import Bell, Clipped
from unmask.token_rates import GIFT, Delimiters, HalfLife


@dataclass(frozen=True)
class Named:
    """A masking with its objective.

    Attributes:
        masking: forward process.
        objective: weights of the masked tokens' losses.
        about: what it is, in a line.
    """

    masking: Masking
    objective: Objective
    about: str


LOW = 1e-3
"""Smallest rate that MDLM (arXiv 2406.07524) and LLaDA (arXiv 2502.09992) train at."""
STANDARD = IndependentMasking(Clipped(LOW, 1.0), coupling="stratified")
EVEN = IndependentMasking(coupling="stratified")
COUNTED = IndependentMasking(mask=ExactCount())
RATES = PPOTS(optimum="stratified")
GRADIENT = PPOTS(optimum="stratified", moment="gradient", masks=2)

MASKINGS: dict[str, Named] = {
    "standard": Named(STANDARD, ELBO(LOW), "rates stratified from .001, weight 1/t: MDLM's"),
    "llada": Named(replace(STANDARD, coupling="independent"), ELBO(LOW), "independent rates, weight 1/t: LLaDA's"),
    "uniform-count": Named(COUNTED, RowMean(), "number of masked tokens uniform, mean of a row: PUMA's baseline"),
    "clipped": Named(
        IndependentMasking(Clipped(0.3, 0.8), coupling="stratified"),
        MaskedMean(),
        "rates stratified from .3 to .8, no weight: LLaDA2's",
    ),
    "independent": Named(
        IndependentMasking(),
        ELBO(),
        "independent rates from 0, weight 1/t: of infinite variance, weaker than standard",
    ),
    "unweighted": Named(EVEN, MaskedMean(), "rates stratified, without the weight 1/t"),
    "bell": Named(replace(EVEN, time=Bell()), MaskedMean(), "as unweighted, with bell-shaped rates"),
    "best": Named(
        replace(EVEN, time=Bell(), mask=ExactCount()),
        MaskedMean(),
        "bell with exact counts, the best of what was measured on letters (docs/LOG.md)",
    ),
    "exact-count": Named(replace(EVEN, mask=ExactCount()), ELBO(), "exact counts stratified, ELBO: nothing left out"),
    "antithetic": Named(replace(STANDARD, coupling="antithetic"), ELBO(LOW), "standard, rates in pairs u and 1 - u"),
    "mirror": Named(replace(STANDARD, pair="mirror"), ELBO(LOW), "standard in mirrored pairs (MIRROR)"),
    "complement": Named(replace(EVEN, pair="complement"), ELBO(), "pairs of a mask and its complement, ELBO"),
    "ppots": Named(replace(EVEN, time=RATES), ELBO(), "rates fitted to the model's variance (P-POTS), ELBO"),
    "ppots-mirror": Named(replace(EVEN, time=RATES, pair="mirror"), ELBO(), "ppots in mirrored pairs"),
    "gift": Named(
        replace(EVEN, mask=GIFT(floor=0.6)), ELBO(), "rates by the entropies of wholly masked rows, before training"
    ),
    "isad": Named(
        replace(EVEN, mask=Delimiters(("####", "\\boxed"))),
        InverseRate(),
        "delimiters of answers at higher rates",
    ),
    "half-life": Named(replace(EVEN, mask=HalfLife()), MaskedMean(), "as unweighted, with rates by position"),
    "papl": Named(EVEN, PAPL(), "as unweighted, likely tokens count more"),
    "papl-top": Named(EVEN, PAPL(of="top"), "as unweighted, confident positions count more"),
    "lift": Named(EVEN, LIFT(), "as unweighted, easy tokens at high rates"),
    "cart": Named(EVEN, CART(), "as unweighted, tokens near visible ones count more"),
    "cap": Named(EVEN, CAP(), "as unweighted, and right predictions are sharpened"),
    "puma": Named(
        ProgressiveUnmasking(stages=8, threshold=0.9),
        RowMean(),
        "progressive unmasking with fast-forward, mean of a row",
    ),
    "puma-paper": Named(ProgressiveUnmasking(stages=8, pool="batch"), RowMean(), "the paper's chain on Sudoku"),
    "high-rates": Named(
        replace(COUNTED, time=Clipped(0.5, 1.0)), RowMean(), "uniform-count at rates of a half and more"
    ),
}
"""What can be trained by name."""

MEASURED: dict[str, Named] = MASKINGS | {
    "ppots-independent": Named(IndependentMasking(PPOTS()), ELBO(), "P-POTS for independent rates"),
    "ppots-within": Named(IndependentMasking(PPOTS(variance="within")), ELBO(), "the paper's variance within rows"),
    "ppots-gradient": Named(replace(EVEN, time=GRADIENT), ELBO(), "P-POTS of the gradient"),
    "ppots-gradient-exact-count": Named(
        replace(EVEN, time=GRADIENT, mask=ExactCount()), ELBO(), "the same with exact counts"
    ),
    "ppots-mirror-exact-count": Named(
        replace(EVEN, time=RATES, mask=ExactCount(), pair="mirror"), ELBO(), "ppots-mirror with exact counts"
    ),
}
"""What `unmask variance` can measure besides: variants of P-POTS."""


def named_masking(name: str, puma: ProgressiveUnmasking | None = None) -> dict[str, Any]:
    """Masking and objective of an arm, by the names of `RunConfig`'s fields; ValueError for an unknown one.

    Args:
        name: of `MASKINGS`.
        puma: stages, threshold and part of the chain that "puma" has in a recipe. No baseline can be changed so.
    """
    check_name("masking", name, MASKINGS)
    found = MASKINGS[name]
    masking = puma if name == "puma" and puma is not None else found.masking
    return {"masking": masking, "objective": found.objective}


def named_by(masking: Masking, objective: Objective) -> str | None:
    """The name of a masking with its objective; None where the table has none."""
    return next((name for name, n in MEASURED.items() if (n.masking, n.objective) == (masking, objective)), None)

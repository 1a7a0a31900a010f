"""Maskings by name, each with its objective: the arms of comparisons on text."""

from __future__ import annotations

from typing import Any

from unmask.config import check_name
from unmask.masks import ExactCount
from unmask.objectives import ELBO, MaskedMean, Objective, RowMean
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.processes.ppots import PPOTS
from unmask.reweighted import CAP, CART, LIFT, PAPL
from unmask.times import Bell
from unmask.token_rates import HalfLife

MASKINGS: dict[str, tuple[Masking, Objective]] = {
    "standard": (IndependentMasking(), ELBO()),
    "unweighted": (IndependentMasking(coupling="stratified"), MaskedMean()),
    "bell": (IndependentMasking(Bell(), coupling="stratified"), MaskedMean()),
    "ppots-mirror": (IndependentMasking(PPOTS(optimum="stratified"), coupling="stratified", pair="mirror"), ELBO()),
    "complement": (IndependentMasking(coupling="stratified", pair="complement"), ELBO()),
    "half-life": (IndependentMasking(mask=HalfLife(), coupling="stratified"), MaskedMean()),
    "papl": (IndependentMasking(coupling="stratified"), PAPL()),
    "papl-top": (IndependentMasking(coupling="stratified"), PAPL(of="top")),
    "lift": (IndependentMasking(coupling="stratified"), LIFT()),
    "cart": (IndependentMasking(coupling="stratified"), CART()),
    "cap": (IndependentMasking(coupling="stratified"), CAP()),
    "puma": (ProgressiveUnmasking(stages=8, threshold=0.9), RowMean()),
    "best": (IndependentMasking(Bell(), ExactCount(), "stratified"), MaskedMean()),
}


def named_masking(name: str) -> dict[str, Any]:
    """Masking and objective of an arm, by the names of `RunConfig`'s fields; ValueError for an unknown one."""
    check_name("masking", name, MASKINGS)
    masking, objective = MASKINGS[name]
    return {"masking": masking, "objective": objective}

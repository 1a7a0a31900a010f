"""Checks that third parties can run on their own time distributions, mask rules and objectives."""

from unmask.testing.enumeration import Expectation, check_unbiased, claims_unbiased, exact_elbo, expectation
from unmask.testing.model import tabular_model
from unmask.testing.tabular import TabularWorld

__all__ = [
    "Expectation",
    "TabularWorld",
    "check_unbiased",
    "claims_unbiased",
    "exact_elbo",
    "expectation",
    "tabular_model",
]

"""Checks that third parties can run on their own time distributions, mask rules, objectives and policies."""

from unmask.testing.chains import ChainStates, chain_difference, chain_states, check_chain, inference_states
from unmask.testing.enumeration import Expectation, check_unbiased, claims_unbiased, exact_elbo, expectation
from unmask.testing.minimiser import Rest, stationary
from unmask.testing.model import tabular_model
from unmask.testing.tabular import TabularWorld

__all__ = [
    "ChainStates",
    "Expectation",
    "Rest",
    "TabularWorld",
    "chain_difference",
    "chain_states",
    "check_chain",
    "check_unbiased",
    "claims_unbiased",
    "exact_elbo",
    "expectation",
    "inference_states",
    "stationary",
    "tabular_model",
]

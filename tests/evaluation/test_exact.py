"""Exact likelihoods are distributions, and the bounds lie where theory puts them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

from unmask import Blockwise, ExactCount, IndependentMasking, MaskedDiffusionLM
from unmask.evaluation.exact import exact_likelihood, importance_weighted, order_likelihood
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.policies import POLICIES, needs
from unmask.testing import TabularWorld, exact_elbo, tabular_model


def rows_of(tokens, maskable=None) -> Dataset:
    flags = [[True] * len(row) for row in tokens] if maskable is None else maskable
    return Dataset.from_dict({"tokens": tokens, "maskable": flags})


@pytest.fixture(scope="module", params=[(3, 3), (4, 2)], ids=str)
def world(request):
    return TabularWorld.random(*request.param, error=2.0)


@pytest.fixture(scope="module")
def model(world):
    return tabular_model(world)


@pytest.fixture(scope="module")
def strings(world):
    return rows_of(world.strings()[0].tolist())


def by_orders(world, tokens) -> torch.Tensor:
    """[orders] log p(x | order), written out."""
    found = []
    for order in itertools.permutations(range(world.length)):
        masked, total = torch.ones(1, world.length, dtype=torch.bool), 0.0
        for i in order:
            total -= float(world.nll(world.rows(torch.tensor([tokens])), masked)[0, i])
            masked[0, i] = False
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def test_elbo_and_mixture_equal_the_sum_over_orders(world, model):
    tokens = world.strings()[0][::3].tolist()
    found = exact_likelihood(model, rows_of(tokens))
    orders = torch.stack([by_orders(world, row) for row in tokens])
    assert torch.allclose(found.elbo.nats, -orders.mean(1), atol=1e-12)
    assert torch.allclose(found.mixture.nats, math.log(orders.shape[1]) - orders.logsumexp(1), atol=1e-12)
    assert torch.allclose(found.elbo.nats, exact_elbo(world.rows(torch.tensor(tokens)), world.nll), atol=1e-12)


def test_order_mixture_sums_to_one(model, strings):
    assert math.isclose(float((-exact_likelihood(model, strings).mixture.nats).exp().sum()), 1, abs_tol=1e-12)


def test_exponential_elbo_does_not_sum_to_one(model, strings):
    """Negative control: the bound is no distribution where the conditionals contradict one another."""
    assert float((-exact_likelihood(model, strings).elbo.nats).exp().sum()) < 1 - 1e-3


@needs("margin")
def least_sure(scores, noise):
    return -scores.margin


@pytest.mark.parametrize("policy", [*POLICIES, least_sure], ids=lambda p: getattr(p, "__name__", p))
def test_likelihood_of_a_policy_s_order_sums_to_one(model, strings, policy):
    nats = order_likelihood(model, strings, policy).nats
    assert math.isclose(float((-nats).exp().sum()), 1, abs_tol=1e-12)


def test_a_policy_that_peeks_gets_nothing_to_peek_at(model, strings):
    with pytest.raises((TypeError, AttributeError)):
        order_likelihood(model, strings, lambda scores, noise: -scores.nll)


def test_left_to_right_is_the_chain_rule(world, model, strings):
    expected = torch.stack([by_orders(world, row)[0] for row in world.strings()[0].tolist()])  # the first order
    assert torch.allclose(order_likelihood(model, strings, "left_to_right").nats, -expected, atol=1e-12)


def test_true_conditionals_give_the_joint_by_every_road():
    world = TabularWorld.random(3, 2)
    tokens, probability = world.strings()
    model, rows = tabular_model(world), rows_of(tokens.tolist())
    found = exact_likelihood(model, rows)
    for nats in (
        found.elbo.nats,
        found.mixture.nats,
        order_likelihood(model, rows, "entropy").nats,
        importance_weighted(model, rows, 2).nats,
    ):
        assert torch.allclose(nats, -probability.log(), atol=1e-9)


def test_bounds_are_ordered_and_the_importance_weighted_one_tightens(world, model):
    """Negative ELBO ≥ E[bound of 1] ≥ E[bound of 4] ≥ E[bound of 16] ≥ exact mixture, averaged over many draws."""
    tokens = world.strings()[0][:4].tolist()
    exact = exact_likelihood(model, rows_of(tokens))
    assert (exact.elbo.nats >= exact.mixture.nats).all()
    repeated = rows_of(tokens * 500)  # other row numbers, so other orders

    def mean(orders):
        found = importance_weighted(model, repeated, orders, batch_size=40_000).nats.view(500, 4)
        return found.mean(0), found.std(0) / 500**0.5

    means, errors = zip(*(mean(k) for k in (1, 4, 16)), strict=True)
    assert ((means[0] - exact.elbo.nats).abs() < 5 * errors[0] + 1e-9).all()
    assert float((means[0] - means[1]).sum()) > 5 * float(errors[0].sum())
    assert float((means[1] - means[2]).sum()) > 0
    assert (means[2] > exact.mixture.nats - 5 * errors[2]).all()


def test_given_tokens_are_not_scored(world, model):
    tokens = world.strings()[0].tolist()
    given = [[False] + [True] * (world.length - 1)] * len(tokens)
    rows = rows_of(tokens, given)
    for nats in (exact_likelihood(model, rows).mixture.nats, order_likelihood(model, rows).nats):
        assert math.isclose(float((-nats).exp().sum()), world.vocab_size, abs_tol=1e-12)  # one for each first token


@pytest.mark.parametrize("batch_size", [1, 5, 300])
def test_batch_size_changes_no_number(model, strings, batch_size):
    assert torch.equal(
        order_likelihood(model, strings, batch_size=batch_size).nats, order_likelihood(model, strings).nats
    )
    assert torch.equal(
        importance_weighted(model, strings, 3, batch_size=batch_size).nats,
        importance_weighted(model, strings, 3).nats,
    )


def test_long_rows_are_refused(model):
    with pytest.raises(ValueError, match=r"20 maskable positions.*importance_weighted"):
        exact_likelihood(model, rows_of([[0] * 20, [1] * 20]))


@pytest.fixture(scope="module")
def body() -> MaskedDiffusionLM:
    """A Llama with random weights large enough to matter, read out one to the right."""
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.6,
        dtype="float64",
    )
    torch.manual_seed(0)
    return MaskedDiffusionLM.from_config(config, mask_token_id=2, shifted=True).double()


def behind_a_prompt(length: int) -> Dataset:
    """All strings of two tokens behind one given token."""
    strings = list(itertools.product(range(2), repeat=length))
    return rows_of([[0, *row] for row in strings], [[False] + [True] * length] * len(strings))


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
@pytest.mark.parametrize("policy", ["confidence", "right_to_left", least_sure])
def test_an_order_within_blocks_is_a_distribution(body, policy, block_size):
    nats = order_likelihood(body, behind_a_prompt(4), policy, block_size=block_size).nats
    assert math.isclose(float((-nats).exp().sum()), 1, abs_tol=1e-12)


def test_one_block_is_none_and_blocks_of_one_are_autoregression(body):
    rows = behind_a_prompt(4)
    whole, none = (order_likelihood(body, rows, block_size=size).nats for size in (7, None))
    assert torch.allclose(whole, none, atol=1e-12)
    one = Blockwise(IndependentMasking(mask=ExactCount()), size=1)
    exact = likelihood(body, rows, LikelihoodConfig(one, samples=1)).nats
    assert torch.allclose(order_likelihood(body, rows, block_size=1).nats, exact, atol=1e-12)
    assert not torch.allclose(whole, exact, atol=1e-2)

"""The estimator contract for rows cut into blocks: rate and density are the block's, and the ELBO their sum."""

import itertools
from dataclasses import dataclass, replace
from functools import partial

import datasets
import pytest
import torch

from unmask import (
    ELBO,
    Bell,
    Bernoulli,
    Beta,
    Blockwise,
    Clipped,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
    RowStream,
    Uniform,
)
from unmask.processes.independent import COUPLINGS
from unmask.testing import TabularWorld, check_unbiased, claims_unbiased, exact_elbo, expectation

RULES = [Bernoulli(), ExactCount()]
TIMES = [Uniform(), Bell(), Beta(2, 1)]


@pytest.fixture(scope="module")
def world():
    return TabularWorld.random(length=4, vocab_size=2, error=1.0)


@pytest.fixture(scope="module")
def clean(world):
    return world.rows(torch.tensor([[0, 1, 1, 0]]))


def nll_of(world, size):
    return partial(world.nll, block=torch.arange(world.length) // size)


@pytest.mark.parametrize("pair", [None, "mirror", "complement"])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_elbo_is_the_sum_of_the_blocks_elbos_for_every_combination(world, clean, time, rule, coupling, pair):
    masking = Blockwise(IndependentMasking(time, rule, coupling, pair), size=2)
    found = check_unbiased(masking, ELBO(), clean, nll_of(world, 2))
    assert found.claims_unbiased


@pytest.mark.parametrize("coupling", ["independent", "stratified"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_strata_over_the_blocks_of_several_rows_leave_it_unbiased(world, rule, coupling):
    clean = world.rows(torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]))
    masking = Blockwise(IndependentMasking(Beta(2, 2), rule, coupling), size=2)
    check_unbiased(masking, ELBO(), clean, nll_of(world, 2))


@pytest.mark.parametrize("pair", [None, "mirror"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_row_mean_with_exact_count_and_uniform_rates_is_the_elbo_of_equal_blocks(world, clean, size, pair):
    masking = Blockwise(IndependentMasking(mask=ExactCount(), pair=pair), size)
    assert check_unbiased(masking, RowMean(), clean, nll_of(world, size)).claims_unbiased


def test_mirroring_below_a_rate_is_unbiased(world, clean):
    masking = Blockwise(IndependentMasking(pair="mirror", mirror_below=0.7), size=2)
    check_unbiased(masking, ELBO(), clean, nll_of(world, 2))


def test_positions_that_are_not_maskable_do_not_matter(world):
    maskable = torch.tensor([[True, False, False, True]])
    clean = world.rows(torch.tensor([[0, 1, 1, 0]]), maskable)
    check_unbiased(Blockwise(IndependentMasking(mask=ExactCount()), size=2), ELBO(), clean, nll_of(world, 2))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_one_block_is_no_blocks_to_the_last_bit(world, clean, rule):
    inner = IndependentMasking(Bell(), rule)
    plain = expectation(inner, ELBO(), clean, world.nll)
    for size in (4, 9):
        assert expectation(Blockwise(inner, size), ELBO(), clean, world.nll) == plain


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_blocks_of_one_token_give_the_exact_likelihood_by_the_chain_rule(error):
    world = TabularWorld.random(length=3, vocab_size=3, error=error)
    strings, probability = world.strings()
    rows = world.rows(strings)
    chain = torch.zeros(len(strings), dtype=torch.float64)
    for i in range(3):
        ahead = (torch.arange(3) >= i).expand(len(strings), -1)
        log_p = world.log_probabilities(strings, ahead)[:, i]
        chain -= log_p.gather(1, strings[:, i : i + 1])[:, 0]
    assert torch.allclose(exact_elbo(rows, nll_of(world, 1), 1), chain, atol=1e-12)
    assert torch.allclose(chain.neg().exp().sum(), torch.ones(1, dtype=torch.float64))
    if error == 0:
        assert torch.allclose(chain, -probability.log(), atol=1e-9)
    found = expectation(Blockwise(IndependentMasking(mask=ExactCount()), 1), ELBO(), rows[:1], nll_of(world, 1))
    assert found.expected == pytest.approx(float(chain[0]) / 3, abs=1e-9)


def test_smaller_blocks_bound_the_likelihood_no_worse_where_the_truth_is_known():
    world = TabularWorld.random(length=4, vocab_size=2)
    strings, probability = world.strings()
    for size in (1, 2, 3, 4):
        assert torch.allclose(exact_elbo(world.rows(strings), nll_of(world, size), size), -probability.log())


# --- negative controls: a planted mistake must be found ---


@dataclass(frozen=True)
class DensityOfTheRow(Blockwise):
    def assemble(self, clean, blocks, t, time, uniform, other):
        batch = super().assemble(clean, blocks, t, time, uniform, other)
        by_block = [self.masking.mask.rate_and_density(x, clean, time)[1] for x in t.view(len(clean), -1).unbind(1)]
        return replace(batch, density=torch.cat(by_block, 1).repeat_interleave(blocks.size, 1))


@dataclass(frozen=True)
class RateOfTheFirstBlock(Blockwise):
    def assemble(self, *arguments):
        batch = super().assemble(*arguments)
        first = (x[:, :1].expand(x.shape) for x in (batch.rate, batch.density))
        return replace(batch, **dict(zip(("rate", "density"), first, strict=True)))


@dataclass(frozen=True)
class OneMeanForTheRow(RowMean):
    def weights(self, batch):
        return super().weights(replace(batch, block=None))


@pytest.mark.parametrize(
    ("masking", "objective"),
    [
        (DensityOfTheRow(IndependentMasking(Bell(), ExactCount()), 2), ELBO()),
        (RateOfTheFirstBlock(IndependentMasking(), 2), ELBO()),
        (RateOfTheFirstBlock(IndependentMasking(Bell(), ExactCount()), 2), ELBO()),
        (Blockwise(IndependentMasking(mask=ExactCount()), 2), OneMeanForTheRow()),
    ],
    ids=["density of the row", "one rate, Bernoulli", "one rate, exact count", "one mean for the row"],
)
def test_a_planted_mistake_is_found(world, clean, masking, objective):
    with pytest.raises(AssertionError, match="biased"):
        check_unbiased(masking, objective, clean, nll_of(world, 2))


def test_what_does_not_claim_to_be_unbiased_is_not(world, clean):
    for inner, objective in [
        (IndependentMasking(), RowMean()),
        (IndependentMasking(Beta(2, 1), ExactCount()), RowMean()),
        (IndependentMasking(), MaskedMean()),
    ]:
        found = expectation(Blockwise(inner, 2), objective, clean, nll_of(world, 2))
        assert not found.claims_unbiased
        assert abs(found.bias) > 1e-5


def test_support_and_density_follow_the_masking_of_a_block():
    assert not claims_unbiased(Blockwise(IndependentMasking(Clipped(0.1, 1.0)), 2), ELBO())
    with pytest.raises(ValueError, match="cannot state the density"):
        ELBO().check(Blockwise(ProgressiveUnmasking(), 2))
    RowMean().check(Blockwise(ProgressiveUnmasking(time=Clipped(0.5, 1.0)), 2))
    assert Blockwise(ProgressiveUnmasking(time=Clipped(0.5, 1.0)), 2).support == (0.5, 1.0)


def test_causal_rows_are_another_bound_and_not_enumerated(world, clean):
    """Else the blocks alone were checked, and the mean of two bounds called the ELBO of one."""
    masking = Blockwise(IndependentMasking(), 2, causal=0.5)
    assert claims_unbiased(replace(masking, causal=0.0), ELBO())
    assert not claims_unbiased(masking, ELBO())
    with pytest.raises(ValueError, match="from left to right"):
        check_unbiased(masking, ELBO(), clean, nll_of(world, 2))


def test_rows_whose_blocks_differ_in_length_are_not_enumerated(world, clean):
    with pytest.raises(ValueError, match="same number of maskable"):
        expectation(Blockwise(IndependentMasking(), 3), ELBO(), clean, nll_of(world, 3))


# --- the running process ---


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "inner",
    [
        IndependentMasking(Bell(), ExactCount(), "stratified", pair="mirror"),
        IndependentMasking(Beta(2, 1), Bernoulli(), "antithetic"),
    ],
    ids=["bell, count, stratified, mirror", "beta, antithetic"],
)
def test_the_mean_of_many_steps_is_the_exact_elbo(world, inner, size):
    """Through the stream, the hash and the folding; blocks of three leave a last one of one token.

    With blocks of one token and an exact count every draw is exact.
    """
    tokens = list(itertools.product([0, 1], repeat=4))[:8]
    data = datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 4] * 8})
    process = Blockwise(inner, size).start(RowStream(data), batch_size=32)
    nll, every = nll_of(world, size), torch.tensor(tokens)
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    table = torch.stack([nll(world.rows(every[r].expand(16, -1)), masks) for r in range(8)])
    place = torch.tensor([8, 4, 2, 1])
    losses = []
    for _ in range(200):
        batch = process.draw()
        found = table[batch.clean.row, (batch.masked * place).sum(1)]
        losses.append((ELBO().weights(batch).double() * found).sum() / ELBO().normaliser(batch))
    losses = torch.stack(losses)
    exact = exact_elbo(world.rows(every), nll, size).sum() / 32
    assert abs(float(losses.mean() - exact)) < 4.5 * float(losses.std()) / 200**0.5 + 1e-12

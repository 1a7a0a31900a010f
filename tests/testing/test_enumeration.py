"""The estimator contract, by exact enumeration through the production code."""

from dataclasses import dataclass

import numpy
import pytest
import torch

from unmask import (
    ELBO,
    PPOTS,
    Bell,
    Bernoulli,
    Beta,
    Clipped,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    RowMean,
    TokenBatch,
)
from unmask.fitted_times import RateProfile
from unmask.processes.ppots import Tabulated
from unmask.testing import TabularWorld, check_unbiased, claims_unbiased, exact_elbo, expectation
from unmask.times import Uniform


@pytest.fixture(scope="module")
def world():
    return TabularWorld.random(length=3, vocab_size=2, error=1.0)


@pytest.fixture(scope="module")
def clean(world):
    return world.rows(torch.tensor([[0, 1, 1], [1, 0, 0]]))


TIMES = [Uniform(), Bell(), Beta(2, 1), Beta(1, 0.5), Tabulated(torch.tensor([1.0, 4, 2, 1, 0.5]))]
RULES = [Bernoulli(), ExactCount()]
COUPLINGS = ["independent", "stratified", "antithetic"]
PAIRS = [None, "mirror", "complement"]


def named(value):
    return value if isinstance(value, (str, bool)) else type(value).__name__


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES, ids=named)
@pytest.mark.parametrize("time", TIMES, ids=named)
def test_elbo_is_unbiased_for_every_combination(world, clean, time, rule, coupling, pair):
    found = check_unbiased(IndependentMasking(time, rule, coupling, pair), ELBO(), clean, world.nll)
    assert found.claims_unbiased


@pytest.mark.parametrize("low", [1e-3, 0.4])
@pytest.mark.parametrize("pair", [None, "mirror"])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_rates_from_a_least_one_estimate_the_bound_without_the_slice_below(world, clean, rule, coupling, pair, low):
    """Under exact counts nothing is missing unless a count lies wholly below: of 3 tokens, 1 is n / 3 <= 0.4."""
    found = check_unbiased(IndependentMasking(Clipped(low, 1.0), rule, coupling, pair), ELBO(low), clean, world.nll)
    assert found.claims_unbiased
    whole = float(exact_elbo(clean, world.nll).sum() / clean.effective_length.sum())
    if rule == ExactCount() and low < 1 / 3:
        assert found.exact == pytest.approx(whole, abs=1e-12)
    else:
        assert 0 < whole - found.exact < 3 * low  # at most the highest loss of a token, times the slice


@pytest.mark.parametrize("low", [1e-3, 0.07, 0.4])
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_complements_make_up_for_rates_that_are_not_drawn(world, clean, rule, low):
    """The pair's density jumps at 1 - low, where the quadrature must be cut."""
    masking = IndependentMasking(Clipped(low, 1.0), rule, pair="complement")
    assert check_unbiased(masking, ELBO(), clean, world.nll).claims_unbiased


@pytest.mark.parametrize("low", [1e-3, 0.4])
def test_the_slice_left_out_is_its_integral(world, clean, low):
    """∫ E[loss | t] / t dt over (0, low], by quadrature over what a Bernoulli mask of that rate can be."""
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    rows = clean[torch.zeros(8, dtype=torch.int64)]
    loss, count = world.nll(rows, masks).sum(1), masks.sum(1).double()
    node, weight = numpy.polynomial.legendre.leggauss(20)
    slice_ = 0.0
    for t, w in zip(low * (node + 1) / 2, low * weight / 2, strict=True):
        slice_ += w * float((t**count * (1 - t) ** (3 - count) * loss).sum()) / t
    kept = exact_elbo(clean[:1], world.nll, rule=Bernoulli(), low=low)
    assert float(exact_elbo(clean[:1], world.nll) - kept) == pytest.approx(slice_, rel=1e-9)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("pair", [None, "mirror"])
def test_row_mean_with_exact_count_and_uniform_rates_is_the_elbo(world, clean, coupling, pair):
    masking = IndependentMasking(Uniform(), ExactCount(), coupling, pair)
    assert check_unbiased(masking, RowMean(), clean, world.nll).claims_unbiased


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_mirroring_below_a_rate_is_unbiased(rule):
    world = TabularWorld.random(length=2, vocab_size=3, error=1.0)
    clean = world.rows(torch.tensor([[0, 2]]))
    check_unbiased(IndependentMasking(mask=rule, pair="mirror", mirror_below=0.7), ELBO(), clean, world.nll)


def test_a_fitted_ppots_is_unbiased(world, clean):
    t = torch.arange(1, 31).double() / 30
    running = PPOTS().start()
    running.refit(RateProfile(t, 0.3 * torch.exp(1.5 * t**2), 0.5 * t**3 + 0.2 * (1 - t) ** 4))
    found = expectation(IndependentMasking(running), ELBO(), clean[:1], world.nll, nodes=8)
    assert abs(found.bias) < 1e-6


def test_positions_that_are_not_maskable_do_not_matter(world):
    maskable = torch.tensor([[True, False, True], [False, True, True]])
    clean = world.rows(torch.tensor([[0, 1, 1], [1, 0, 0]]), maskable)
    check_unbiased(IndependentMasking(mask=ExactCount(), coupling="stratified"), ELBO(), clean, world.nll)


@pytest.mark.parametrize(
    ("objective", "masking"),
    [
        (RowMean(), IndependentMasking()),
        (RowMean(), IndependentMasking(Bell(), ExactCount())),
        (RowMean(), IndependentMasking(mask=ExactCount(), pair="complement")),
        (MaskedMean(), IndependentMasking()),
        (MaskedMean(), IndependentMasking(Bell(), Bernoulli(), "stratified")),
        (MaskedMean(), IndependentMasking(mask=ExactCount(), coupling="antithetic", pair="mirror")),
    ],
    ids=repr,
)
def test_what_does_not_claim_to_be_unbiased_is_not(world, clean, objective, masking):
    found = expectation(masking, objective, clean, world.nll)
    assert not found.claims_unbiased
    assert abs(found.bias) > 1e-5


def test_clipped_rates_make_no_claim():
    assert not claims_unbiased(IndependentMasking(Clipped(0.1, 1.0)), ELBO())


@pytest.mark.parametrize("rule", RULES, ids=named)
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.5), (0, 0.9), (0.2, 0.8), (0.4, 1), (0.5, 1), (0.5, 0.9), (0.6, 1)]
)
def test_rates_and_their_complements_cover_all_rates_where_the_elbo_takes_them(rule, low, high):
    """With a loss of one for every token the bound is one a token, for rows of any length."""
    masking = IndependentMasking(Clipped(low, high), rule, pair="complement")
    t = masking.time.quantile((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    found = []
    for length in (1, 2, 3, 4, 5, 6, 16):
        maskable = torch.ones(1, length, dtype=torch.bool)
        nothing = torch.zeros(1, dtype=torch.int64)
        row = TokenBatch(maskable.long(), maskable, maskable, nothing, nothing, torch.ones(1))
        clean = row[torch.zeros(len(t), dtype=torch.int64)]
        batch = masking.assemble(clean, t, masking.time, torch.full((len(t), length), 0.5, dtype=torch.float64), None)
        masks = batch.rate > 0  # a row without a mask adds nothing
        found.append(float(torch.where(masks, 1 / batch.density, 0.0).mean()))
    unbiased = all(abs(bound - 1) < 2e-3 for bound in found)
    assert claims_unbiased(masking, ELBO()) == unbiased, found


def test_the_biased_expectation_agrees_with_simulation(world, clean):
    """Ratio estimators take the other path through the checker: Z is random."""
    masking, objective = IndependentMasking(Bell(), Bernoulli(), "antithetic"), MaskedMean()
    exact = expectation(masking, objective, clean, world.nll).expected
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    t = masking.time.quantile(torch.stack([u, 1 - u], 1).flatten())
    field = torch.rand(2 * n, 3, generator=generator, dtype=torch.float64)
    batch = masking.assemble(clean[torch.arange(2).repeat(n)], t, masking.time, field, None)
    table = world.nll  # every mask of both rows, looked up
    masks = torch.tensor([[(m >> i) & 1 for i in range(3)] for m in range(8)], dtype=torch.bool)
    nll = torch.stack([table(clean[torch.full((8,), r)], masks) for r in range(2)])
    code = (batch.masked * torch.tensor([1, 2, 4])).sum(1)
    loss = (batch.masked * nll[torch.arange(2).repeat(n), code]).sum(1).view(n, 2).sum(1)
    z = batch.masked.sum(1).view(n, 2).sum(1)
    values = torch.where(z > 0, loss / z.clamp(min=1), 0.0)
    assert abs(float(values.mean()) - exact) < 5 * float(values.std()) / n**0.5


# --- negative controls: a planted mistake must be found ---


@dataclass(frozen=True)
class WrongDensity(Uniform):
    def density(self, t):
        return 1 + 0.01 * (t - 0.5)


@dataclass(frozen=True)
class WrongCount(ExactCount):
    def rate_and_density(self, t, clean, time):
        rate, density = super().rate_and_density(t, clean, time)
        return rate, density * (1 + 0.01 * rate)


@dataclass(frozen=True)
class WrongPair(ExactCount):
    def complement_density(self, rate, clean, time):
        return super().rate_and_density(rate[:, 0], clean, time)[1]  # that of the first row alone


@dataclass(frozen=True)
class WrongWeight(ELBO):
    def weights(self, batch):
        return super().weights(batch) * 1.001


@dataclass(frozen=True)
class WrongNormaliser(ELBO):
    def normaliser(self, batch):
        return batch.clean.maskable[batch.masked.any(1)].sum().double()  # forgets the rows without a mask


@dataclass(frozen=True)
class WrongRule(Bernoulli):
    def choose(self, uniform, rate, maskable):
        chosen = super().choose(uniform, rate, maskable)
        chosen[:, 0] |= maskable[:, 0] & ~chosen.any(1)  # masks one token where none was drawn
        return chosen


@pytest.mark.parametrize(
    ("masking", "objective"),
    [
        (IndependentMasking(WrongDensity()), ELBO()),
        (IndependentMasking(mask=WrongCount()), ELBO()),
        (IndependentMasking(), WrongWeight()),
        (IndependentMasking(), WrongNormaliser()),
        (IndependentMasking(mask=WrongRule()), ELBO()),
        (IndependentMasking(mask=WrongPair(), pair="complement"), ELBO()),
    ],
    ids=["density", "count", "weight", "normaliser", "redrawn", "pair"],
)
def test_a_planted_mistake_is_found(world, clean, masking, objective):
    with pytest.raises(AssertionError, match="biased"):
        check_unbiased(masking, objective, clean, world.nll)


# --- the world itself ---


def test_the_exact_elbo_of_the_true_conditionals_is_the_exact_likelihood():
    world = TabularWorld.random(length=3, vocab_size=3)
    strings, probability = world.strings()
    assert torch.allclose(exact_elbo(world.rows(strings), world.nll), -probability.log(), atol=1e-9)


def test_a_wrong_denoiser_has_a_larger_elbo_on_average(world):
    strings, probability = world.strings()
    elbo = exact_elbo(world.rows(strings), world.nll)
    assert float((probability * (elbo + probability.log())).sum()) > 1e-3

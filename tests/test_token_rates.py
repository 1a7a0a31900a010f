"""Rates by token: the bound of their law of orders, by enumeration; and what rates from hidden tokens do."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from unmask import (
    ELBO,
    GIFT,
    PPOTS,
    Bell,
    Beta,
    Blockwise,
    Delimiters,
    HalfLife,
    IndependentMasking,
    InverseRate,
    MaskedMean,
    RowMean,
    RowStream,
    Uniform,
)
from unmask.testing import TabularWorld, check_unbiased, exact_elbo, stationary

RULES = [HalfLife(1.0), HalfLife(-0.7), GIFT()]
each = pytest.mark.parametrize("rule", RULES, ids=repr)


@pytest.fixture(scope="module")
def world():
    return TabularWorld.random(length=3, vocab_size=2, error=1.0)


@pytest.fixture(scope="module")
def clean(world):
    rows = world.rows(torch.tensor([[0, 1, 1], [1, 0, 0]]))
    return replace(rows, guide=torch.tensor([[0.9, 1.0, 1.6], [1.0, 1.4, 0.8]], dtype=torch.float64))


@each
@pytest.mark.parametrize(
    ("time", "coupling", "pair"),
    [(Uniform(), "independent", None), (Bell(), "stratified", "mirror"), (Beta(2, 1.2), "independent", None)],
    ids=["uniform", "bell, stratified, mirror", "beta"],
)
def test_the_elbo_of_the_law_of_orders_is_met_without_bias(world, clean, rule, time, coupling, pair):
    masking = IndependentMasking(time, rule, coupling, pair)
    assert check_unbiased(masking, ELBO(), clean, world.nll).claims_unbiased


def test_so_it_is_block_by_block():
    world = TabularWorld.random(length=4, vocab_size=2, error=1.0)
    nll = partial(world.nll, block=torch.arange(4) // 2)
    masking = Blockwise(IndependentMasking(mask=HalfLife()), 2)
    check_unbiased(masking, ELBO(), world.rows(torch.tensor([[0, 1, 1, 0]])), nll)


@each
def test_positions_that_are_given_do_not_matter(world, clean, rule):
    maskable = torch.tensor([[True, False, True], [False, True, True]])
    check_unbiased(IndependentMasking(mask=rule), ELBO(), replace(clean, maskable=maskable), world.nll)


@each
def test_the_bound_is_the_likelihood_where_the_truth_is_known_and_another_elsewhere(world, clean, rule):
    truth = TabularWorld(world.joint)
    exact = exact_elbo(clean, truth.nll, rule=rule)
    likelihood = -torch.stack([truth.joint[tuple(row)].log() for row in clean.tokens.tolist()])
    assert torch.allclose(exact, likelihood, atol=1e-9)
    even = exact_elbo(clean, world.nll)
    assert ((exact_elbo(clean, world.nll, rule=rule) - even).abs() > 1e-3).any()


@each
def test_the_mean_exponent_of_a_row_is_one_and_rates_cover_all(clean, rule):
    t = torch.tensor([1e-6, 1.0], dtype=torch.float64)
    rate, density = rule.rate_and_density(t, clean, Uniform())
    assert torch.allclose(rate[0] / 1e-6, 1 / density[0], rtol=1e-5)  # r' at 0 is c
    assert float((1 / density[0]).mean()) == pytest.approx(1)
    assert (rate[1] == 1).all()
    assert not torch.allclose(rate[0] / 1e-6, torch.ones(3, dtype=torch.float64), rtol=1e-2)


@each
def test_a_rate_that_is_rounded_to_one_has_finite_weights(world, clean, rule):
    """Of Beta(2, 0.1) one rate in forty is nearer to 1 than float64 can tell."""
    time = Beta(2, 0.1)
    t = time.quantile(torch.full((2,), 0.999, dtype=torch.float64))
    assert (t == 1).all()
    batch = IndependentMasking(time, rule).assemble(
        clean, t, time, torch.full((2, 3), 0.5, dtype=torch.float64), None
    )
    assert batch.masked.all()
    weights = ELBO().weights(batch)
    assert weights.isfinite().all()
    assert (weights > 0).all()


def test_equal_exponents_are_bernoulli(world, clean):
    flat = replace(clean, guide=torch.full((2, 3), 0.7, dtype=torch.float64))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    rate, density = GIFT().rate_and_density(t, flat, Beta(2, 1))
    assert torch.allclose(rate, t[:, None].expand(2, 3))
    assert torch.allclose(density, Beta(2, 1).density(t)[:, None].expand(2, 3))
    assert torch.allclose(exact_elbo(flat, world.nll, rule=GIFT()), exact_elbo(flat, world.nll))


@dataclass(frozen=True)
class DensityOfTheRow(HalfLife):
    def rate_and_density(self, t, clean, time):
        rate, _ = super().rate_and_density(t, clean, time)
        return rate, time.density(t)[:, None].expand_as(rate)  # forgets that it is the rate's


def test_the_density_of_t_in_place_of_the_rates_is_found(world, clean):
    with pytest.raises(AssertionError, match="biased"):
        check_unbiased(IndependentMasking(mask=DensityOfTheRow()), ELBO(), clean, world.nll)


@each
@pytest.mark.parametrize("objective", [ELBO(), RowMean(), MaskedMean()], ids=repr)
def test_rates_from_what_is_visible_leave_the_minimiser_where_it_is(rule, objective):
    world = TabularWorld.random(length=3, vocab_size=2)
    guide = torch.tensor([[0.9, 1.0, 1.6]], dtype=torch.float64)
    found = stationary(
        IndependentMasking(mask=rule),
        objective,
        world,
        lambda s: replace(world.rows(s), guide=guide.expand(len(s), -1)),
    )
    assert found.moved < 1e-9


def test_delimiters_move_it_where_masked_tokens_depend_on_one_another():
    """By 6% here, in total variation; without the weight 1/q by 17%. docs/estimators.md has the figures."""
    world = TabularWorld.random(length=3, vocab_size=2)
    masking = IndependentMasking(mask=Delimiters((1,)))
    weighted, plain = (stationary(masking, objective, world) for objective in (InverseRate(), MaskedMean()))
    assert 0.03 < weighted.moved < 0.1
    assert plain.moved > 2 * weighted.moved
    # The weight makes up for the token's own rate: where it alone is hidden, nothing has moved.
    alone = (weighted.context == world.mask_token_id).sum(1) == 1
    assert torch.allclose(weighted.predicted[alone], weighted.truth[alone], atol=1e-12)
    assert not torch.allclose(plain.predicted[alone], plain.truth[alone], atol=1e-2)


def test_delimiters_leave_independent_tokens_alone():
    a, b = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    world = TabularWorld(a[:, None] * b)
    assert stationary(IndependentMasking(mask=Delimiters((1,))), InverseRate(), world).moved < 1e-7


@pytest.mark.parametrize(
    "masking", [IndependentMasking(mask=Delimiters((3,))), Blockwise(IndependentMasking(mask=Delimiters((3,))), 2)]
)
def test_the_elbo_refuses_rates_that_peek(masking):
    with pytest.raises(ValueError, match="depend on the hidden tokens"):
        ELBO().check(masking)
    InverseRate().check(masking)


def test_listed_tokens_are_masked_more_often(token_batch):
    clean = token_batch([[5, 7, 5, 9]])
    rate, density = Delimiters((7, 9), 0.3).rate_and_density(
        torch.tensor([0.8], dtype=torch.float64), clean, Uniform()
    )
    assert rate.tolist() == pytest.approx([0.8, 1.0, 0.8, 1.0]) or rate[0].tolist() == [0.8, 1.0, 0.8, 1.0]
    assert density.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("shift", [0.2, 0.3, 0.55])
def test_a_delimiter_s_rate_is_one_from_the_breakpoint_on(token_batch, shift):
    rule = Delimiters((7,), shift)
    (point,) = rule.breakpoints
    for t, certain in ((point - 1e-6, False), (point + 1e-12, True)):
        rate, _ = rule.rate_and_density(torch.tensor([t], dtype=torch.float64), token_batch([[7]]), Uniform())
        assert (rate.item() == 1) is certain


@pytest.mark.parametrize("half_life", [0.25, 0.5, -0.5, None])
def test_an_exponent_doubles_in_every_half_life(token_batch, half_life):
    """Of a row's real positions; by default once over the whole row."""
    rule = HalfLife() if half_life is None else HalfLife(half_life)
    exponents = rule.exponents(token_batch([list(range(8))]))[0]
    share = 1.0 if half_life is None else half_life
    ratio = (exponents[1:] / exponents[:-1]).tolist()
    assert ratio == pytest.approx([2 ** (1 / (8 * share))] * 7)


@pytest.mark.parametrize("rule", [HalfLife(), GIFT()], ids=repr)
def test_the_only_maskable_position_of_a_row_has_the_rate_t(clean, rule):
    alone = replace(clean, maskable=torch.tensor([[False, True, False], [True, False, False]]))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    rate, density = rule.rate_and_density(t, alone, Uniform())
    torch.testing.assert_close(rate[alone.maskable], t)
    torch.testing.assert_close(density[alone.maskable], torch.ones(2, dtype=torch.float64))


def test_gift_keeps_certain_tokens_at_a_share_of_their_row_s_mean(clean):
    sure = replace(clean, guide=torch.tensor([[0.0, 3.0, 6.0], [0.5, 0.0, 0.1]], dtype=torch.float64))
    assert GIFT(floor=0.5).exponents(sure)[0].tolist() == pytest.approx([1.5, 3, 6])
    assert GIFT(floor=1.0).exponents(sure)[1].tolist() == pytest.approx([0.5, 0.2, 0.2])


def test_gift_reads_entropies_as_shares_of_their_row(clean):
    """In nats or bits, sure models or unsure ones: only the differences within a row make rates differ."""
    rule, time, t = GIFT(), Uniform(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    found = [rule.rate_and_density(t, replace(clean, guide=clean.guide * unit), time)[0] for unit in (1, 0.01, 100)]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_the_ranks_together_draw_what_one_rank_draws(dataset_of, joined):
    data = dataset_of([5, 3, 6, 2])
    data = data.add_column("guide", [[float(i + 1) for i in range(len(t))] for t in data["tokens"]])
    masking = IndependentMasking(mask=GIFT(), coupling="stratified", pair="mirror")
    whole = masking.start(RowStream(data), 8)
    parts = [masking.start(RowStream(data, rank=r, world_size=2), 8) for r in range(2)]
    for _ in range(2):
        all_of_them, expected = joined([part.draw() for part in parts]), whole.draw()
        width, maskable = expected.clean.length, expected.clean.maskable
        assert torch.equal(all_of_them.masked[:, :width], expected.masked)
        assert torch.equal(all_of_them.rate[:, :width][maskable], expected.rate[maskable])


def test_what_cannot_work_is_refused(token_batch):
    clean, t = token_batch([[1, 2]]), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"unmask\.add_entropies"):
        GIFT().rate_and_density(t, clean, Uniform())
    with pytest.raises(ValueError, match="no complementary pairs"):
        IndependentMasking(mask=HalfLife(), pair="complement")
    for time in (PPOTS(online=True), PPOTS(online=True).start()):
        with pytest.raises(ValueError, match="a rate for each token"):
            IndependentMasking(time, HalfLife())
    for mask in (HalfLife(), GIFT()):
        with pytest.raises(ValueError, match="have no bound: use a fixed time distribution"):
            IndependentMasking(PPOTS(), mask)
    IndependentMasking(PPOTS(), Delimiters((1,)))  # rates of one at t = 1, and weights of one
    for wrong in (lambda: Delimiters(()), lambda: Delimiters((1,), 1.0), lambda: HalfLife(0.0), lambda: GIFT(0.0)):
        with pytest.raises(ValueError, match=r"Delimiters|shift|half_life|floor"):
            wrong()

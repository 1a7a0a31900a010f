import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import Bell, Bernoulli, Beta, ExactCount, TokenBatch, Uniform, noise
from unmask.masks import smallest

RULES = [Bernoulli(), ExactCount()]
TIMES = [Uniform(), Bell(), Beta(a=2.0, b=1.5)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
rates = st.floats(1e-6, 1)


def field(rows, length, seed=0):
    return noise.uniforms(seed, torch.arange(rows), torch.zeros(rows, dtype=torch.int64), length)


def rows_with(maskable):
    """Clean rows with these maskable positions [B, L]."""
    count = torch.zeros(len(maskable), dtype=torch.int64)
    return TokenBatch(maskable.long(), maskable, torch.ones_like(maskable), count, count, torch.ones(len(count)))


def choose(rule, uniform, t, maskable=None):
    """Masks of one rate t for all rows, as the process makes them."""
    maskable = torch.ones_like(uniform, dtype=torch.bool) if maskable is None else maskable
    t = torch.full((len(uniform),), t, dtype=torch.float64)
    rate, _ = rule.rate_and_density(t, rows_with(maskable), Uniform())
    return rule.choose(uniform, rate, maskable)


def some_maskable(rows, length, seed):
    flags = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    flags[:, -1] = True
    return flags


@every_rule
@given(t=rates, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_masks_stay_inside_the_maskable_positions_and_grow_with_the_rate(rule, t, seed):
    maskable, uniform = some_maskable(5, 9, seed), field(5, 9, seed)
    masked = choose(rule, uniform, t, maskable)
    assert not (masked & ~maskable).any()
    larger = choose(rule, uniform, min(1.0, t * 1.5), maskable)
    assert not (masked & ~larger).any()
    assert torch.equal(choose(rule, uniform, 1.0, maskable), maskable)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.5, 0.9])
def test_bernoulli_masks_at_its_rate_and_each_position_by_itself(t):
    masked = choose(Bernoulli(), field(4000, 6), t).double()
    error = (t * (1 - t) / 4000) ** 0.5
    assert ((masked.mean(0) - t).abs() < 4 * error).all()
    counts = masked.sum(1)
    assert float(counts.var()) == pytest.approx(6 * t * (1 - t), rel=0.15)


def test_a_bernoulli_row_may_stay_without_a_mask():
    assert (choose(Bernoulli(), field(1000, 3), 0.1).sum(1) == 0).float().mean() == pytest.approx(0.9**3, abs=0.05)


@given(t=rates, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_exact_count_masks_the_rounded_up_share_of_each_row(t, seed):
    maskable = some_maskable(6, 12, seed)
    masked = choose(ExactCount(), field(6, 12, seed), t, maskable)
    assert masked.sum(1).tolist() == [math.ceil(t * n * (1 - 2**-51)) for n in maskable.sum(1).tolist()]


@pytest.mark.parametrize("grid", [20, 30, 70])
def test_exact_count_of_a_rate_of_a_grid_is_the_whole_share(grid):
    """23/30 of 150 tokens are 115, whatever 23/30 is rounded to."""
    for length in range(1, 401):
        rows = rows_with(torch.ones(grid, length, dtype=torch.bool))
        place = torch.arange(1, grid + 1)
        rate, _ = ExactCount().rate_and_density(place.double() / grid, rows, Uniform())
        assert torch.equal((rate[:, 0] * length).round().long(), -(-place * length // grid))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_exact_count_draws_every_subset_equally_often(count, mirrored):
    maskable = torch.tensor([True, False, True, True, True, True])
    uniform = field(4000, 6)
    masked = choose(ExactCount(), 1 - uniform if mirrored else uniform, count / 5, maskable.expand(4000, 6))
    code = (masked * 2 ** torch.arange(6)).sum(1)
    found = torch.unique(code, return_counts=True)[1].double()
    subsets = math.comb(5, count)
    expected = 4000 / subsets
    assert len(found) == subsets
    assert float(((found - expected) ** 2 / expected).sum()) < subsets - 1 + 5 * (2 * (subsets - 1)) ** 0.5


@every_rule
@pytest.mark.parametrize("time", TIMES, ids=repr)
@given(length=st.integers(1, 6), seed=st.integers(0, 100))
@settings(max_examples=6, deadline=None)
def test_weighting_by_rate_and_density_gives_the_elbo_for_every_rule_and_time(rule, time, length, seed):
    """The mean of Σ nll / (rate · density) is Σ h_n / n for any h: here by quadrature over the quantile."""
    h = torch.rand(length + 1, generator=torch.Generator().manual_seed(seed)).double() * torch.arange(length + 1)
    cells = 20_000
    t = time.quantile((torch.arange(cells) + 0.5) / cells)
    clean = rows_with(torch.ones(cells, length, dtype=torch.bool))
    rate, density = (x[:, 0] for x in rule.rate_and_density(t, clean, time))
    size = torch.arange(length + 1).double()
    if isinstance(rule, ExactCount):
        loss = h[(rate * length).round().long()]
    else:
        ways = torch.tensor([math.comb(length, n) for n in range(length + 1)])
        loss = (ways * rate[:, None] ** size * (1 - rate[:, None]) ** (length - size) * h).sum(1)
    estimate = (loss / (rate * density)).mean()
    assert float(estimate) == pytest.approx(float((h[1:] / size[1:]).sum()), rel=0.02)


@pytest.mark.parametrize("time", [*TIMES, Beta(a=3.0, b=1.0)], ids=repr)
def test_the_rates_of_complementary_bernoulli_masks_have_a_density(time):
    """It integrates to one, is the same at both rates of a pair, and is the law's own where that is symmetric."""
    rate = (torch.arange(20_000, dtype=torch.float64)[:, None] + 0.5) / 20_000
    found = Bernoulli().complement_density(rate, rows_with(torch.ones(1, 1, dtype=torch.bool)), time)
    assert found.mean().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(found, found.flip(0))
    if not isinstance(time, Beta):
        torch.testing.assert_close(found, time.density(rate))


@given(t=rates, length=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_mirrored_exact_masks_overlap_as_little_as_their_count_allows(t, length, seed):
    uniform = field(3, length, seed)
    a, b = choose(ExactCount(), uniform, t), choose(ExactCount(), 1 - uniform, t)
    n = math.ceil(t * length)
    assert (a & b).sum(1).tolist() == [max(0, 2 * n - length)] * 3


@given(t=rates, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_mirrored_bernoulli_masks_are_disjoint_or_cover_everything(t, seed):
    uniform = field(3, 12, seed)
    a, b = choose(Bernoulli(), uniform, t), choose(Bernoulli(), 1 - uniform, t)
    if t <= 0.5:
        assert not (a & b).any()
    else:
        assert (a | b).all()


def growing_loss(length, seed):
    """Make a random set function that grows with what is hidden: the weights of the groups that a set touches."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.rand(12, length, generator=generator) < 0.4
    weights = torch.rand(12, generator=generator).double()
    return lambda masked: (masked[:, None] & groups).any(-1).double() @ weights


@every_rule
@pytest.mark.parametrize("t", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(5))
def test_mirrored_losses_covary_negatively_and_independent_ones_do_not(rule, t, seed):
    """All fields of a symmetric grid, so the covariance is exact (for exact counts, of an additive loss)."""
    if isinstance(rule, Bernoulli):
        uniform = torch.tensor(list(itertools.product([0.125, 0.375, 0.625, 0.875], repeat=4))).double()
        loss = growing_loss(4, seed)
    else:
        uniform = (torch.tensor(list(itertools.permutations(range(4)))).double() + 0.5) / 4
        value = torch.rand(4, generator=torch.Generator().manual_seed(seed)).double()
        loss = lambda masked: masked.double() @ value  # noqa: E731
    one, other = loss(choose(rule, uniform, t)), loss(choose(rule, 1 - uniform, t))
    assert float((one * other).mean() - one.mean() * other.mean()) < -1e-6
    assert float(one.mean()) == pytest.approx(float(other.mean()))
    # The control: two masks of independent fields, over all pairs of fields.
    assert float((one[:, None] * one).mean() - one.mean() ** 2) == pytest.approx(0, abs=1e-12)


def test_masks_of_two_independent_fields_overlap_more_than_mirrored_ones():
    uniform, other = field(500, 20, 0), field(500, 20, 1)
    for rule in RULES:
        a = choose(rule, uniform, 0.4)
        assert (a & choose(rule, other, 0.4)).double().mean() == pytest.approx(0.16, abs=0.02)
        assert not (a & choose(rule, 1 - uniform, 0.4)).any()


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=8),
    count=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_smallest_takes_the_first_of_value_and_then_position(values, count, data):
    eligible = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    found = smallest(torch.tensor([values]), torch.tensor([eligible]), torch.tensor([[count]]))
    order = sorted((value, i) for i, value in enumerate(values) if eligible[i])
    assert found[0].nonzero()[:, 0].tolist() == sorted(i for _, i in order[:count])


def test_smallest_finds_eligible_positions_of_infinite_value_behind_ineligible_ones():
    value = torch.tensor([[0.1, torch.inf, torch.inf]])
    assert smallest(value, torch.tensor([[False, False, True]]), torch.tensor([[1]])).tolist() == [
        [False, False, True]
    ]

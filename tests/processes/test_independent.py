import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from unmask import (
    ELBO,
    PPOTS,
    Bell,
    Bernoulli,
    Beta,
    Delimiters,
    ExactCount,
    IndependentMasking,
    RowImportance,
    RowStream,
    Scores,
    Uniform,
)
from unmask.processes.independent import COUPLINGS

PAIRS = [None, "mirror", "complement"]
LENGTHS = [3, 7, 1, 5, 2, 6, 4, 8, 2, 5, 3]
MASKINGS = [
    IndependentMasking(coupling=coupling, mask=rule, pair=pair, mirror_below=below, time=time)
    for coupling, (rule, time), (pair, below) in itertools.product(
        COUPLINGS,
        [(Bernoulli(), Bell()), (ExactCount(), Uniform())],
        [(None, 1.0), ("mirror", 1.0), ("mirror", 0.6), ("complement", 1.0)],
    )
]
IDS = [f"{m.coupling}-{m.mask}-{m.pair} {m.mirror_below}" for m in MASKINGS]
each = pytest.mark.parametrize("masking", MASKINGS, ids=IDS)


@pytest.fixture(scope="module")
def ranks_of(stream_of):
    """Start one process for each rank of a world."""

    def start(masking, world_size, batch_size=8, seed=0, lengths=LENGTHS):
        return [
            masking.start(stream_of(lengths, seed=seed, rank=rank, world_size=world_size), batch_size, seed)
            for rank in range(world_size)
        ]

    return start


def quantiles(masking, batch):
    """Recover each unit's quantile from its rate: exact for rates that are drawn as they are."""
    return masking.time.cdf(batch.rate[:, 0])[:: masking.rows_per_unit]


@each
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_draw_what_one_rank_draws(ranks_of, same, joined, masking, world_size):
    whole, parts = ranks_of(masking, 1, 16)[0], ranks_of(masking, world_size, 16)
    for _ in range(3):
        assert same(joined([part.draw() for part in parts]), whole.draw())


@each
def test_masks_are_maskable_and_state_the_rate_and_density_of_their_rule(ranks_of, masking):
    process = ranks_of(masking, 1, 16)[0]
    for _ in range(3):
        batch = process.draw()
        assert not (batch.masked & ~batch.clean.maskable).any()
        length = batch.clean.effective_length
        assert ((batch.rate >= 0) & (batch.rate <= 1)).all()
        assert masking.pair == "complement" or (batch.rate > 0).all()
        if isinstance(masking.mask, ExactCount):
            assert torch.equal(batch.masked.sum(1), (batch.rate[:, 0] * length).round().long())

        def density(rate, length=length):
            if isinstance(masking.mask, ExactCount):
                return length[:, None] * (masking.time.cdf(rate) - masking.time.cdf(rate - 1 / length[:, None]))
            return masking.time.density(rate)

        expected = density(batch.rate)
        if masking.pair == "complement":  # a row of the pair has either rate
            expected = (expected + density(1 - batch.rate)) / 2
        assert torch.allclose(batch.density, expected)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("time", [Uniform(), Bell(), Beta(a=0.7, b=2.0)], ids=repr)
def test_stratified_rates_have_one_unit_in_each_stratum_of_the_global_batch(ranks_of, world_size, pair, time):
    masking = IndependentMasking(coupling="stratified", time=time, pair=pair)
    units = 8 if pair else 16
    processes, orders = ranks_of(masking, world_size, 16), set()
    for _ in range(6):
        u = torch.cat([quantiles(masking, process.draw()) for process in processes])
        strata = (u * units).long().tolist()
        assert sorted(strata) == list(range(units))
        orders.add(tuple(strata))
    assert len(orders) == 6  # and the strata are dealt anew each step


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("time", [Uniform(), Bell(mean=0.4), Beta(a=0.7, b=2.0)], ids=repr)
@pytest.mark.parametrize("pair", PAIRS)
def test_antithetic_units_sit_at_mirrored_quantiles(ranks_of, world_size, time, pair):
    masking = IndependentMasking(coupling="antithetic", time=time, pair=pair)
    processes = ranks_of(masking, world_size, 16)
    for _ in range(3):
        u = torch.cat([quantiles(masking, process.draw()) for process in processes])
        assert torch.allclose(u[0::2] + u[1::2], torch.ones(len(u) // 2, dtype=torch.float64))
        assert len(u.unique()) == len(u)


@pytest.mark.parametrize(
    "curve", [lambda t: t, lambda t: 1 / (t + 0.1), lambda t: (9 * t).sin(), lambda t: (t > 0.4) * t]
)
@pytest.mark.parametrize("n", [4, 9, 16])
def test_n_strata_are_never_worse_than_the_papers_root_of_n(curve, n):
    """The variance that the rates add to a mean over n rows, from the rates that the process draws."""
    masking, u = IndependentMasking(coupling="stratified"), (torch.arange(600, dtype=torch.float64) + 0.5) / 600

    def variance(strata):
        rates = torch.stack([masking.quantiles(x.expand(strata), torch.arange(strata)) for x in u])
        return float(curve(rates).var(0, correction=0).sum()) * (n // strata) / n**2

    ours, papers, independent = variance(n), variance(round(n**0.5)), variance(1)
    assert ours < papers < independent
    if n == 16:
        assert ours < 0.5 * papers


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_coupled_rate_is_still_distributed_as_its_time_distribution(ranks_of, coupling):
    masking = IndependentMasking(coupling=coupling, time=Bell())
    process = ranks_of(masking, 1, 4)[0]
    u = torch.stack([quantiles(masking, process.draw()) for _ in range(400)])
    for slot in u.T:
        assert kstest(slot.numpy(), "uniform").pvalue > 1e-3


def test_independent_rates_of_a_batch_are_not_coupled(ranks_of):
    """The control: strata collide and pairs do not sum to one."""
    masking = IndependentMasking()
    u = quantiles(masking, ranks_of(masking, 1, 16)[0].draw())
    assert sorted((u * 16).long().tolist()) != list(range(16))
    assert ((u[0::2] + u[1::2] - 1).abs() > 1e-3).all()


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_no_two_ranks_share_rows_rates_or_masks(ranks_of, coupling, pair):
    masking = IndependentMasking(coupling=coupling, pair=pair)
    batches = [process.draw() for process in ranks_of(masking, 2, 8, lengths=[60] * 8)]
    a, b = batches
    assert not set(a.clean.row.tolist()) & set(b.clean.row.tolist())
    assert not set(a.rate.flatten().tolist()) & set(b.rate.flatten().tolist())
    for one in a.masked:
        assert not (b.masked == one).all(1).any()


def test_a_row_drawn_again_gets_other_noise(ranks_of):
    process = ranks_of(IndependentMasking(mask=ExactCount()), 1, 4, lengths=[40] * 4)[0]
    batches = [process.draw() for _ in range(2)]
    first, second = (dict(zip(b.clean.row.tolist(), b.masked.tolist(), strict=True)) for b in batches)
    assert first.keys() == second.keys()
    assert all(first[row] != second[row] for row in first)


@given(seed=st.integers(0, 1000), rule=st.sampled_from([Bernoulli(), ExactCount()]))
@settings(max_examples=25, deadline=None)
def test_a_mirrored_pair_shares_row_and_rate_and_hides_as_little_as_it_can_twice(ranks_of, seed, rule):
    batch = ranks_of(IndependentMasking(mask=rule, pair="mirror"), 1, 8, seed)[0].draw()
    a, b = batch[0::2], batch[1::2]
    for name in ("tokens", "maskable", "row", "draw"):
        assert torch.equal(getattr(a.clean, name), getattr(b.clean, name))
    assert torch.equal(a.rate, b.rate)
    assert torch.equal(a.density, b.density)
    both, either = a.masked & b.masked, a.masked | b.masked
    for i in range(len(a)):
        assert not both[i].any() or torch.equal(either[i], a.clean.maskable[i])


@given(seed=st.integers(0, 1000), rule=st.sampled_from([Bernoulli(), ExactCount()]))
@settings(max_examples=25, deadline=None)
def test_a_complementary_pair_trains_every_token_once(ranks_of, seed, rule):
    masking = IndependentMasking(Bell(), rule, "stratified", pair="complement")
    batch = ranks_of(masking, 1, 8, seed)[0].draw()
    assert len(batch) == 8  # forwards, not units
    a, b = batch[0::2], batch[1::2]
    for name in ("tokens", "maskable", "row", "draw"):
        assert torch.equal(getattr(a.clean, name), getattr(b.clean, name))
    assert torch.equal(a.masked ^ b.masked, a.clean.maskable)
    assert torch.equal(b.rate, 1 - a.rate)
    assert torch.equal(a.density, b.density)


def test_the_complement_of_a_row_that_is_wholly_masked_is_empty(token_batch):
    clean, t = token_batch([[1, 2, 3]]), torch.ones(1, dtype=torch.float64)
    masking = IndependentMasking(mask=ExactCount(), pair="complement")
    field = torch.full((1, 3), 0.5, dtype=torch.float64)
    batch = masking.assemble(clean, t, masking.time, field, None)
    assert batch.masked.tolist() == [[True] * 3, [False] * 3]
    assert batch.rate.tolist() == [[1.0], [0.0]]
    weights = ELBO().weights(batch)
    assert weights.isfinite().all()
    assert not weights[1].any()


def test_rates_are_learnt_from_complements_too(ranks_of):
    masking = IndependentMasking(PPOTS(online=True, grid=4), ExactCount(), pair="complement")
    process = ranks_of(masking, 1, 16)[0]
    for _ in range(4):
        batch = process.draw()
        process.observe(Scores(torch.zeros(batch.masked.shape), nll=batch.masked.double()))
    process.time.refit()
    assert process.time.density(torch.tensor([0.1, 0.9])).isfinite().all()


def test_above_mirror_below_the_second_row_takes_a_field_of_its_own(ranks_of):
    masking = IndependentMasking(pair="mirror", mirror_below=0.6)
    process = ranks_of(masking, 1, 32, lengths=[30] * 16)[0]
    plain = ranks_of(IndependentMasking(pair="mirror"), 1, 32, lengths=[30] * 16)[0]
    counts = {True: [], False: []}
    for _ in range(4):
        batch, mirrored = process.draw(), plain.draw()
        assert torch.equal(batch.masked[0::2], mirrored.masked[0::2])  # the first row is the same either way
        for i in range(0, len(batch), 2):
            unchanged = torch.equal(batch.masked[i + 1], mirrored.masked[i + 1])
            counts[bool(batch.rate[i] < 0.6)].append(unchanged)
    assert all(counts[True])
    assert sum(counts[False]) <= 2  # at t near 1 everything is masked either way
    assert len(counts[False]) > 10


@each
@pytest.mark.parametrize("done", [0, 3])
def test_a_resumed_process_draws_the_same(ranks_of, same, joined, masking, done):
    original = ranks_of(masking, 1, 16)[0]
    for _ in range(done):
        original.draw()
    state = original.state_dict()
    expected = [original.draw() for _ in range(3)]
    resumed = ranks_of(masking, 1, 16)[0]
    resumed.draw()
    resumed.load_state_dict(state)
    assert all(same(resumed.draw(), batch) for batch in expected)
    pair = ranks_of(masking, 2, 16)  # on another number of ranks, too
    for process in pair:
        process.load_state_dict(state)
    assert same(joined([process.draw() for process in pair]), expected[0])


def test_draws_differ_by_step_and_by_seed(ranks_of):
    masking = IndependentMasking()
    process = ranks_of(masking, 1, 8)[0]
    rates = [tuple(process.draw().rate.flatten().tolist()) for _ in range(3)]
    rates.append(tuple(ranks_of(masking, 1, 8, seed=1)[0].draw().rate.flatten().tolist()))
    assert len(set(itertools.chain(*rates))) == 32


@pytest.mark.parametrize(
    ("options", "batch_size", "world_size"),
    [
        ({}, 9, 2),
        ({}, 0, 1),
        ({}, 2.0, 1),
        ({"pair": "mirror"}, 7, 1),
        ({"pair": "mirror"}, 6, 2),
        ({"coupling": "antithetic"}, 7, 1),
        ({"coupling": "antithetic", "pair": "mirror"}, 6, 1),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_at_the_start(ranks_of, options, batch_size, world_size):
    with pytest.raises(ValueError, match="batch_size"):
        ranks_of(IndependentMasking(**options), world_size, batch_size)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"coupling must be 'independent' or .*, got 'strata'"):
        IndependentMasking(coupling="strata")
    for below in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="mirror_below"):
            IndependentMasking(pair="mirror", mirror_below=below)
    for pair in (None, "complement"):
        with pytest.raises(ValueError, match="set pair='mirror' too"):
            IndependentMasking(pair=pair, mirror_below=0.5)
    with pytest.raises(TypeError, match="'mirror' or 'complement' or None, got True"):
        IndependentMasking(pair=True)


def test_what_a_law_learnt_is_not_dropped_by_one_that_learns_nothing(ranks_of):
    learnt = ranks_of(IndependentMasking(PPOTS()), 1, 4)[0].state_dict()
    with pytest.raises(ValueError, match=r"Uniform.* keeps no state, but the checkpoint holds"):
        ranks_of(IndependentMasking(), 1, 4)[0].load_state_dict(learnt)


def test_rates_that_are_learnt_from_those_of_rows_are_refused_where_each_token_has_its_own():
    rule = Delimiters((3,))
    assert IndependentMasking(mask=rule).mask == IndependentMasking(PPOTS(), rule).mask == rule
    with pytest.raises(ValueError, match="learns from the rates of rows, and Delimiters"):
        IndependentMasking(PPOTS(online=True), rule)


def test_the_losses_of_a_draw_are_learnt_from_once(stream_of):
    process = IndependentMasking(PPOTS(online=True), ExactCount()).start(stream_of([4] * 8), batch_size=4)
    before = process.time.state_dict()["sums"][:, 0].sum()
    process.observe(None)  # nothing was drawn
    batch = process.draw()
    process.observe(Scores(torch.zeros(batch.masked.shape), nll=batch.masked.double()))
    process.observe(None)
    assert process.time.state_dict()["sums"][:, 0].sum() == before + 4


@pytest.mark.parametrize("fill", [5.0, float("nan")])
def test_what_scores_hold_where_nothing_is_masked_is_not_learnt(dataset_of, fill):
    """A loop of one's own has the nll of every position at hand; that of visible ones means nothing."""
    sums = []
    for elsewhere in (0.0, fill):
        rows = RowStream(dataset_of([6] * 8), importance=RowImportance())
        process = IndependentMasking(PPOTS(online=True, grid=4)).start(rows, 8)
        masked = process.draw().masked
        nll = torch.where(masked, 2.0, elsewhere)
        process.observe(Scores(-nll, nll=nll))
        sums.append(torch.cat([process.time.state_dict()["sums"].flatten(), rows.state_dict()["scales"]["scale"]]))
    assert sums[0].nansum() > 0
    torch.testing.assert_close(*sums, rtol=0, atol=0, equal_nan=True)


def test_losses_of_whole_rows_are_not_taken_for_those_of_positions(dataset_of):
    process = IndependentMasking(PPOTS(online=True)).start(RowStream(dataset_of([4] * 4)), 4)
    masked = process.draw().masked
    with pytest.raises(ValueError, match=r"nll of all \(4, 5\) positions"):
        process.observe(Scores(torch.zeros(masked.shape), nll=torch.ones(4)))

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from unmask import Bell, Bernoulli, Beta, ExactCount, IndependentMasking, Uniform
from unmask.processes.independent import COUPLINGS

LENGTHS = [3, 7, 1, 5, 2, 6, 4, 8, 2, 5, 3]
MASKINGS = [
    IndependentMasking(coupling=coupling, mask=rule, mirror=mirror, mirror_below=below, time=time)
    for coupling, (rule, time), (mirror, below) in itertools.product(
        COUPLINGS, [(Bernoulli(), Bell()), (ExactCount(), Uniform())], [(False, 1.0), (True, 1.0), (True, 0.6)]
    )
]
IDS = [f"{m.coupling}-{m.mask}-mirror {m.mirror_below if m.mirror else 0}" for m in MASKINGS]
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
    return masking.time.cdf(batch.rate[:, 0])[:: 2 if masking.mirror else 1]


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
        assert ((batch.rate > 0) & (batch.rate <= 1)).all()
        if isinstance(masking.mask, ExactCount):
            assert torch.equal(batch.masked.sum(1), (batch.rate[:, 0] * length).round().long())
            mass = masking.time.cdf(batch.rate) - masking.time.cdf(batch.rate - 1 / length[:, None])
            assert torch.allclose(batch.density, length[:, None] * mass)
        else:
            assert torch.equal(batch.density, masking.time.density(batch.rate))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("time", [Uniform(), Bell(), Beta(a=0.7, b=2.0)], ids=repr)
def test_stratified_rates_have_one_unit_in_each_stratum_of_the_global_batch(ranks_of, world_size, mirror, time):
    masking = IndependentMasking(coupling="stratified", time=time, mirror=mirror)
    units = 8 if mirror else 16
    processes, orders = ranks_of(masking, world_size, 16), set()
    for _ in range(6):
        u = torch.cat([quantiles(masking, process.draw()) for process in processes])
        strata = (u * units).long().tolist()
        assert sorted(strata) == list(range(units))
        orders.add(tuple(strata))
    assert len(orders) == 6  # and the strata are dealt anew each step


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("time", [Uniform(), Bell(mean=0.4), Beta(a=0.7, b=2.0)], ids=repr)
@pytest.mark.parametrize("mirror", [False, True])
def test_antithetic_units_sit_at_mirrored_quantiles(ranks_of, world_size, time, mirror):
    masking = IndependentMasking(coupling="antithetic", time=time, mirror=mirror)
    processes = ranks_of(masking, world_size, 16)
    for _ in range(3):
        u = torch.cat([quantiles(masking, process.draw()) for process in processes])
        assert torch.allclose(u[0::2] + u[1::2], torch.ones(len(u) // 2, dtype=torch.float64))
        assert len(u.unique()) == len(u)


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
@pytest.mark.parametrize("mirror", [False, True])
def test_no_two_ranks_share_rows_rates_or_masks(ranks_of, coupling, mirror):
    masking = IndependentMasking(coupling=coupling, mirror=mirror)
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
    batch = ranks_of(IndependentMasking(mask=rule, mirror=True), 1, 8, seed)[0].draw()
    a, b = batch[0::2], batch[1::2]
    for name in ("tokens", "maskable", "row", "draw"):
        assert torch.equal(getattr(a.clean, name), getattr(b.clean, name))
    assert torch.equal(a.rate, b.rate)
    assert torch.equal(a.density, b.density)
    both, either = a.masked & b.masked, a.masked | b.masked
    for i in range(len(a)):
        assert not both[i].any() or torch.equal(either[i], a.clean.maskable[i])


def test_above_mirror_below_the_second_row_takes_a_field_of_its_own(ranks_of):
    masking = IndependentMasking(mirror=True, mirror_below=0.6)
    process = ranks_of(masking, 1, 32, lengths=[30] * 16)[0]
    plain = ranks_of(IndependentMasking(mirror=True), 1, 32, lengths=[30] * 16)[0]
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


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_groups_join_exactly_the_rows_that_share_noise(ranks_of, coupling, mirror, world_size):
    masking = IndependentMasking(coupling=coupling, mirror=mirror)
    processes = ranks_of(masking, world_size, 8)
    seen = set()
    for _ in range(2):
        group = torch.cat([process.draw().group for process in processes])
        size = {"independent": 1, "antithetic": 2, "stratified": 8}[coupling]
        size = min(8, size * (2 if mirror else 1))
        blocks = group.view(-1, size)
        assert (blocks == blocks[:, :1]).all()
        assert len(group.unique()) == 8 // size
        assert not seen & set(group.tolist())  # steps share nothing
        seen |= set(group.tolist())


@pytest.mark.parametrize(
    ("options", "batch_size", "world_size"),
    [
        ({}, 9, 2),
        ({}, 0, 1),
        ({}, 2.0, 1),
        ({"mirror": True}, 7, 1),
        ({"mirror": True}, 6, 2),
        ({"coupling": "antithetic"}, 7, 1),
        ({"coupling": "antithetic", "mirror": True}, 6, 1),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_at_the_start(ranks_of, options, batch_size, world_size):
    with pytest.raises(ValueError, match="batch_size"):
        ranks_of(IndependentMasking(**options), world_size, batch_size)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="independent, stratified, antithetic, got 'strata'"):
        IndependentMasking(coupling="strata")
    for below in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="mirror_below"):
            IndependentMasking(mirror=True, mirror_below=below)

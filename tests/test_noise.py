import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from unmask import noise
from unmask.noise import Purpose

WORD = st.integers(-(2**63), 2**63 - 1)


def field(seed=0, rows=200, length=50, first_row=0, draw=0, **options):
    row = torch.arange(first_row, first_row + rows)
    return noise.uniforms(seed, row, torch.full_like(row, draw), length, **options)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_one_counter_is_hashed_as_split_mix_64_does():
    """Its generator adds the golden ratio to its state and mixes: the outputs published for seed 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in range(4)]
    assert [int(noise.hashes(state)) % 2**64 for state in states] == outputs


def test_uniforms_are_strictly_inside_the_unit_interval_whatever_the_bits():
    bits = torch.tensor([0, -1, 1, 2**63 - 1, -(2**63)])
    values = noise._unit(bits)
    assert ((values > 0) & (values < 1)).all()
    assert ((1 - values > 0) & (1 - values < 1)).all()
    assert torch.equal(1 - (1 - values), values)  # so a mirrored field loses nothing


@given(seed=WORD, row=WORD, draw=WORD, purpose=st.sampled_from(Purpose))
@settings(max_examples=60, deadline=None)
def test_any_counter_gives_uniforms_inside_the_unit_interval(seed, row, draw, purpose):
    values = noise.uniforms(seed, torch.tensor([row]), torch.tensor([draw]), 8, purpose=purpose)
    assert ((values > 0) & (values < 1)).all()
    assert len(values.unique()) == 8


@pytest.mark.parametrize(
    "values",
    [
        field(seed=3),
        field(seed=0, rows=10_000, length=1),
        field(seed=2**62, rows=1, length=10_000),
        noise.slot_uniforms(0, 5, torch.arange(10_000)),
        torch.stack([noise.slot_uniforms(0, step, torch.tensor(0)) for step in range(2000)]),
    ],
    ids=["rows by positions", "rows", "positions", "slots", "steps"],
)
def test_noise_is_uniform_along_every_counter(values):
    assert kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3


OTHERS = {
    "seed": field(seed=1),
    "row": field(first_row=200),
    "draw": field(draw=1),
    "purpose": field(purpose=Purpose.MIRROR),
    "salt": field(salt=1),
    "neighbouring row": field(first_row=1),
    "neighbouring position": field(length=51)[:, 1:],
    "row and draw exchanged": noise.uniforms(0, torch.zeros(200, dtype=torch.int64), torch.arange(200), 50),
}


@pytest.mark.parametrize("other", OTHERS)
def test_changing_one_counter_gives_independent_noise(other):
    # 10,000 pairs: the standard error of a correlation is 0.01. The squares see dependence that is not linear.
    a, b = field(), OTHERS[other]
    assert abs(correlation(a, b)) < 0.04
    assert abs(correlation((a - 0.5) ** 2, (b - 0.5) ** 2)) < 0.04


def test_position_bits_show_no_lattice():
    # Pairs and triples of neighbours fill the cube evenly: chi-square over 8 x 8 x 8 cells.
    values = field(rows=4000, length=12).view(-1, 3)
    cell = ((values * 8).long() * torch.tensor([64, 8, 1])).sum(1)
    expected = len(cell) / 512
    chi = ((torch.bincount(cell, minlength=512) - expected) ** 2 / expected).sum()
    assert abs(float(chi) - 511) < 5 * (2 * 511) ** 0.5


def test_rates_and_masks_do_not_share_noise():
    slots = noise.slot_uniforms(0, 0, torch.arange(10_000))
    masks = noise.uniforms(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 10_000)
    assert abs(correlation(slots, masks)) < 0.04


@given(seed=WORD, data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_noise_of_a_row_does_not_depend_on_its_company(seed, data):
    rows = data.draw(st.lists(WORD, min_size=1, max_size=8))
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    row = torch.tensor(rows)
    whole = noise.uniforms(seed, row, row + 1, 6)
    split = torch.cat([noise.uniforms(seed, part, part + 1, 6) for part in (row[:cut], row[cut:])])
    assert torch.equal(whole, split)
    assert torch.equal(whole[order], noise.uniforms(seed, row[order], row[order] + 1, 6))


@given(short=st.integers(0, 20), extra=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_a_longer_row_extends_the_noise_of_a_shorter_one(short, extra):
    assert torch.equal(field(rows=3, length=short), field(rows=3, length=short + extra)[:, :short])


def test_slot_noise_does_not_depend_on_how_slots_are_split():
    whole = noise.slot_uniforms(1, 2, torch.arange(12))
    halves = [noise.slot_uniforms(1, 2, torch.arange(6) + 6 * rank) for rank in range(2)]
    assert torch.equal(whole, torch.cat(halves))


@given(seed=WORD, counter=st.integers(0, 10**6), size=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_a_permutation_visits_everything_once(seed, counter, size):
    order = noise.permutation(seed, counter, size)
    assert torch.equal(order.sort().values, torch.arange(size))


def test_permutations_differ_by_epoch_seed_and_purpose():
    base = noise.permutation(0, 0, 100)
    assert torch.equal(base, noise.permutation(0, 0, 100))
    for other in (
        noise.permutation(0, 1, 100),
        noise.permutation(1, 0, 100),
        noise.permutation(0, 0, 100, purpose=Purpose.STRATUM),
    ):
        assert (base == other).sum() < 10  # two random orders agree at one place on average


def test_all_orders_are_equally_likely():
    counts = {}
    for counter in range(2400):
        order = tuple(noise.permutation(0, counter, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    chi = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert len(counts) == 24
    assert chi < 23 + 5 * 46**0.5


def test_counters_of_another_type_are_refused():
    with pytest.raises(TypeError, match="int64"):
        noise.hashes(torch.zeros(2))
    with pytest.raises(ValueError, match="negative"):
        field(length=-1)

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from unmask import (
    PPOTS,
    Bell,
    Bernoulli,
    Blockwise,
    Clipped,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    ProgressiveUnmasking,
    Ramp,
    RowImportance,
    RowMean,
    RowStream,
    Uniform,
)
from unmask.config import from_json, to_json
from unmask.processes.blocks import Blocks
from unmask.processes.independent import COUPLINGS
from unmask.schedules import integer_at

LENGTHS = [3, 7, 1, 5, 2, 6, 4, 8, 2, 5, 3]
MASKINGS = [
    IndependentMasking(coupling=coupling, mask=rule, pair=pair, mirror_below=below, time=time)
    for coupling, (rule, time), (pair, below) in itertools.product(
        COUPLINGS,
        [(Bernoulli(), Bell()), (ExactCount(), Uniform())],
        [(None, 1.0), ("mirror", 0.6), ("complement", 1.0)],
    )
]
CHAINS = [
    ProgressiveUnmasking(stages=4),
    ProgressiveUnmasking(stages=6, threshold=0.4, policy="margin"),
    ProgressiveUnmasking(stages=((0, 3), (4, 7)), policy="random", time=Clipped(0.3, 1.0)),
    ProgressiveUnmasking(stages=((0, 5), (30, 3)), threshold=0.5, policy="entropy", time=Clipped(0.4, 0.9), pool=24),
]
SIZES = [1, 2, 3, 5, 20, ((0, 1), (3, 2), (5, 4)), Ramp(6, 1, steps=6)]


@pytest.fixture(scope="module")
def start(stream_of):
    def make(masking, batch_size=8, lengths=LENGTHS, seed=0, **options):
        return masking.start(stream_of(lengths, seed=seed, **options), batch_size, seed)

    return make


@pytest.fixture(scope="module")
def drive(random_scores):
    """Some steps of processes side by side, all fed with the same scores for the same positions."""

    def run(process, steps, seed=0, longest=24):
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(steps):
            batch = process.draw()
            scores = random_scores((len(batch), longest), generator)
            scores = scores.map(lambda x, length=batch.clean.length: x[:, :length])
            if process.needs is not None:
                process.observe(scores)
            found.append(batch)
        return found

    return run


def by_block(batch, values):
    """[B, blocks, size] view of [B, L] values, zeros where the last block is short."""
    blocks = Blocks(int((batch.block[0] == 0).sum()), batch.clean.length)
    return blocks.fold(values).view(len(values), blocks.count, blocks.size)


@given(rows=st.integers(1, 5), length=st.integers(1, 12), size=st.integers(1, 15), each=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_unfolding_undoes_folding(rows, length, size, each):
    blocks = Blocks(min(size, length), length)
    values = torch.arange(rows * length).view(rows, length)
    units = blocks.fold(values)
    assert units.shape == (rows * blocks.count, blocks.size)
    assert torch.equal(blocks.unfold(units.repeat_interleave(each, 0), each), values.repeat_interleave(each, 0))
    # Every position lies in the block of its number.
    assert torch.equal(values[:, blocks.numbers(values)[0] == 0], units.view(rows, -1, blocks.size)[:, 0])


@pytest.mark.parametrize("inner", MASKINGS, ids=str)
def test_a_block_as_long_as_the_row_is_no_block_to_the_last_bit(start, drive, same, inner):
    plain = drive(start(inner), 3)
    for size in (9, 1000):
        for blocked, batch in zip(drive(start(Blockwise(inner, size)), 3), plain, strict=True):
            rate, density = (x.expand(batch.masked.shape) for x in (batch.rate, batch.density))
            assert same(blocked, replace(batch, rate=rate, density=density, block=blocked.block))
            assert not blocked.block.any()
            for objective in (RowMean(), MaskedMean()):
                assert torch.equal(objective.weights(blocked), objective.weights(batch))
                assert objective.normaliser(blocked) == objective.normaliser(batch)


@pytest.mark.parametrize("inner", CHAINS, ids=str)
def test_chains_of_one_block_are_those_of_rows_to_the_last_bit(start, drive, same, inner):
    plain = drive(start(inner), 14)
    for blocked, batch in zip(drive(start(Blockwise(inner, 50)), 14), plain, strict=True):
        assert same(blocked, replace(batch, rate=batch.rate.expand(batch.masked.shape), block=blocked.block))
    assert torch.stack([b.clean.draw for b in plain]).max() >= 1


@pytest.mark.parametrize("size", [1, 3, 20, *SIZES[-2:]], ids=str)
@pytest.mark.parametrize("inner", MASKINGS, ids=str)
def test_each_block_states_its_own_rate_and_density(start, drive, inner, size):
    for batch in drive(start(Blockwise(inner, size)), 7):
        assert not (batch.masked & ~batch.clean.maskable).any()
        assert not batch.block.diff(dim=1).lt(0).any()
        length, count = (by_block(batch, x).sum(2) for x in (batch.clean.maskable, batch.masked))
        rate, density = (by_block(batch, x) for x in (batch.rate, batch.density))
        inside = by_block(batch, torch.ones_like(batch.masked))
        assert torch.equal(rate.amax(2), torch.where(inside, rate, rate[..., :1]).amin(2))
        rate, density = rate[..., 0], density[..., 0]
        assert ((rate >= 0) & (rate <= 1)).all()
        assert inner.pair == "complement" or (rate > 0).all()
        assert density.isfinite().all()
        some = length > 0

        def expected(rate, length=length):
            if isinstance(inner.mask, ExactCount):
                return length * (inner.time.cdf(rate) - inner.time.cdf(rate - 1 / length.clamp(min=1)))
            return inner.time.density(rate)

        if isinstance(inner.mask, ExactCount):
            assert torch.equal(count[some], (rate * length).round().long()[some])
        stated = (expected(rate) + expected(1 - rate)) / 2 if inner.pair == "complement" else expected(rate)
        assert torch.allclose(density[some], stated[some])


def test_blocks_of_a_row_have_rates_of_their_own(start):
    """Pitfall 16: one rate for all blocks of a row. The control has it: the rates of a row's blocks are equal."""
    process = start(Blockwise(IndependentMasking(), 4), 64, lengths=[16] * 64, prompt=0)
    rates = torch.cat([by_block(b, b.rate)[..., 0] for b in (process.draw() for _ in range(30))])
    correlation = torch.corrcoef(rates.T)
    assert (correlation - torch.eye(4)).abs().max() < 4 / len(rates) ** 0.5
    assert kstest(rates.flatten().numpy(), "uniform").pvalue > 1e-3
    one = torch.corrcoef(rates[:, :1].expand(-1, 4).T)
    assert (one - torch.eye(4, dtype=torch.float64)).abs().max() > 0.99


@pytest.mark.parametrize("pair", [None, "mirror", "complement"])
def test_strata_are_over_the_blocks_of_the_batch(start, pair):
    """Ragged rows too: the longest has four blocks, so every row has four."""
    process = start(Blockwise(IndependentMasking(coupling="stratified", pair=pair), 2), 12, lengths=[7, 2, 5, 3])
    orders = set()
    for _ in range(4):
        batch = process.draw()
        rate = by_block(batch, batch.rate)[:: 2 if pair else 1, :, 0].flatten()
        if len(rate) < (6 if pair else 12) * 4:
            continue
        strata = (rate * len(rate)).long().tolist()
        assert sorted(strata) == list(range(len(rate)))
        orders.add(tuple(strata))
    assert len(orders) >= 2


def test_antithetic_pairs_are_blocks_next_to_one_another(start):
    process = start(Blockwise(IndependentMasking(coupling="antithetic"), 3), 4, lengths=[7, 8, 8, 8])
    for _ in range(3):
        batch = process.draw()
        rate = by_block(batch, batch.rate)[..., 0].flatten()
        assert torch.allclose(rate[0::2] + rate[1::2], torch.ones(len(rate) // 2, dtype=torch.float64))


@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=str)
def test_mirrored_rows_share_the_rates_of_their_blocks_and_hide_as_little_as_they_can_twice(start, rule):
    batch = start(Blockwise(IndependentMasking(mask=rule, pair="mirror"), 3), 16).draw()
    a, b = batch[0::2], batch[1::2]
    assert torch.equal(a.clean.row, b.clean.row)
    assert torch.equal(a.rate, b.rate)
    twice, once, maskable = (by_block(a, x) for x in (a.masked & b.masked, a.masked | b.masked, a.clean.maskable))
    assert torch.equal(once[twice.any(2)], maskable[twice.any(2)])
    rates = by_block(a, a.rate)[..., 0]
    assert not torch.equal(rates[:, 0], rates[:, 1])


@pytest.mark.parametrize("masking", [*MASKINGS[::5], *CHAINS], ids=str)
@pytest.mark.parametrize("size", [3, SIZES[-2], SIZES[-1]], ids=str)
def test_a_resumed_process_draws_the_same(start, drive, same, masking, size):
    for done in (3, 5):
        original = start(Blockwise(masking, size))
        drive(original, done, seed=1)
        state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in original.state_dict().items()}
        expected = drive(original, 5)
        resumed = start(Blockwise(masking, size))
        drive(resumed, 1)
        resumed.load_state_dict(state)
        assert all(same(a, b) for a, b in zip(drive(resumed, 5), expected, strict=True))


# --- chains of blocks ---


@pytest.mark.parametrize("inner", CHAINS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3], ids=str)
def test_every_block_is_a_chain_and_a_row_stays_until_all_its_blocks_have_ended(start, drive, joined, inner, size):
    process = start(Blockwise(inner, size), lengths=[3, 9, 14, 1, 6, 11, 2, 8], gaps=True)
    fresh, uneven, last = 0, False, {}
    for _ in range(24 * process.turns):
        places = process.turn.tolist()
        (new,) = drive(process, 1, seed=process.step)
        visited = {place: new[slot : slot + 1] for slot, place in enumerate(places)}
        assert new.masked.any(1).all()  # a row without any mask is never drawn
        share = by_block(new, new.rate)[..., 0]
        uneven |= bool((share.amax(1) != share[by_block(new, new.clean.maskable).any(2)].min()).any())
        assert torch.equal(share, left_share(new))
        if all(place in last for place in places):
            old = joined([last[place] for place in places])
            stays = (old.clean.row == new.clean.row) & (old.clean.draw == new.clean.draw)
            before, after = old.masked[stays], new.masked[stays]
            assert not (after & ~before).any()
            left, now = (by_block(batch, batch.masked)[stays].sum(2) for batch in (old, new))
            assert ((now < left) | (left == 0)).all()  # every block moves at every visit, until it has ended
            entered = by_block(new, new.masked)[~stays].sum(2) > 0
            assert torch.equal(entered, by_block(new, new.clean.maskable)[~stays].any(2))  # no block is left out
            fresh += int((~stays).sum())
        last |= visited
    assert fresh > 20
    assert uneven == (size > 1)


def left_share(batch):
    masked, maskable = by_block(batch, batch.masked).sum(2), by_block(batch, batch.clean.maskable).sum(2)
    return masked.double() / maskable.clamp(min=1)


@pytest.mark.parametrize("inner", CHAINS, ids=str)
@pytest.mark.parametrize("size", [((0, 2), (1, 4), (3, 8)), SIZES[-1]], ids=str)
def test_a_change_of_size_begins_the_pool_anew_with_the_next_rows(stream_of, random_scores, inner, size):
    stream = stream_of(LENGTHS)
    process = Blockwise(inner, size).start(stream, 8)
    generator, changes = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        batch = process.draw()
        revealed, before = process.revealed.clone(), process.clean.map(torch.clone)
        taken = stream.position
        process.observe(random_scores(batch.masked.shape, generator))
        same = (process.clean.row == before.row) & (process.clean.draw == before.draw)
        if integer_at(size, process.step) == integer_at(size, process.step - 1):
            assert not (revealed & ~process.revealed[:, : before.length])[same].any()
        else:
            changes += 1
            assert not same.any()
            assert stream.position == taken + process.pool
            place = torch.arange(process.pool)[:, None]
            spread = place * process.chain.stages // process.pool
            assert torch.equal(process.stage, spread.expand(-1, process.blocks.count))
            units = process.blocks.units(process.clean)
            entered = process.chain.entry(units, process.stage.flatten())
            assert torch.equal(process.blocks.fold(process.revealed), entered)
        # The rows of the pool are as many as before, and their tokens those of the stream.
        assert torch.equal(stream.rows(process.clean.row).padded(process.clean.length).tokens, process.clean.tokens)
        assert process.stage.shape == (process.pool, process.blocks.count)
    assert changes >= 2


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4), low=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    stages=st.integers(1, 6), threshold=st.sampled_from([None, 0.4]), pool=st.sampled_from([4, 12]),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_no_row_is_drawn_without_a_mask_whatever_sizes_follow_one_another(
    start, random_scores, sizes, low, stages, threshold, pool, seed
):
    inner = ProgressiveUnmasking(stages=stages, threshold=threshold, time=Clipped(low, 1.0), pool=pool)
    table = tuple((2 * i, size) for i, size in enumerate(sizes))
    process = start(Blockwise(inner, table), 4, lengths=[8, 7, 8, 3], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2 * len(sizes) + process.turns):
        batch = process.draw()
        assert batch.masked.any(1).all()
        process.observe(random_scores(batch.masked.shape, generator))


def blocks_ended_before_a_change(start, random_scores, inner, size, seed=0, steps=12):
    """Blocks that have ended stay so, at every step; how many a change of K met with tokens still masked, which their
    ratio alone would revive."""
    process = start(Blockwise(inner, size), 8, lengths=[23, 9, 34, 1, 16, 21, 2, 28], seed=seed)
    generator, met = torch.Generator().manual_seed(seed), 0

    def ended():
        units = process.blocks.units(process.clean)
        return process.chain.ended(units, process.blocks.fold(process.revealed), process.stage.flatten())

    for _ in range(steps):
        before, rows, k = ended(), process.clean.map(torch.clone), process.chain.stages
        turn, batch = process.turn, process.draw()
        process.observe(random_scores(batch.masked.shape, generator))
        stays = (process.clean.row == rows.row) & (process.clean.draw == rows.draw)
        kept = before & stays.repeat_interleave(process.blocks.count)
        assert ended()[kept].all()
        assert not batch.masked[process.blocks.unfold(before[:, None].expand(-1, size))[turn]].any()
        if process.chain.stages != k:
            maskable, revealed = (process.blocks.fold(x) for x in (process.clean.maskable, process.revealed))
            met += int((kept & (maskable & ~revealed).any(1)).sum())
    return met


@given(
    stages=st.lists(st.integers(1, 12), min_size=2, max_size=6), every=st.integers(1, 4), size=st.integers(1, 12),
    low=st.sampled_from([0.0, 0.3, 0.5, 0.8]), threshold=st.sampled_from([None, 0.4, 0.9]),
    pool=st.sampled_from([8, 16]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_blocks_that_have_ended_stay_so_under_any_schedule_of_the_number_of_stages(
    start, random_scores, stages, every, size, low, threshold, pool, seed
):
    table = tuple((every * i, k) for i, k in enumerate(stages))
    inner = ProgressiveUnmasking(stages=table, threshold=threshold, time=Clipped(low, 1.0), pool=pool)
    blocks_ended_before_a_change(start, random_scores, inner, size, seed)


@pytest.mark.parametrize("pool", ["batch", 16])
@pytest.mark.parametrize("stages", [((0, 3), (4, 9)), ((0, 9), (8, 2))], ids=str)
def test_blocks_that_have_ended_stay_so_with_tokens_still_masked(start, random_scores, stages, pool):
    inner = ProgressiveUnmasking(stages=stages, time=Clipped(0.5, 1.0), pool=pool)
    assert blocks_ended_before_a_change(start, random_scores, inner, 5) > 0


@pytest.mark.parametrize("pool", [1, 2])
def test_rows_longer_than_any_before_join_the_pool(start, drive, pool):
    """Chains do not depend on the padding of their neighbours."""
    masking = Blockwise(replace(CHAINS[0], pool=pool), 2)
    short = drive(start(masking, 1, lengths=[2, 3, 9, 1]), 16 * pool)
    ends = [b.clean.length for b in short]
    assert ends[0] < max(ends)
    alone = [b.masked[0, : int(b.clean.attention[0].sum())].tolist() for b in short]
    beside = drive(start(masking, 1, lengths=[2, 3, 9, 1]), 16 * pool, longest=50)
    assert [b.masked[0, : int(b.clean.attention[0].sum())].sum() for b in beside] == [sum(row) for row in alone]


def test_the_metrics_tell_size_refills_and_stages(start, drive):
    process = start(Blockwise(ProgressiveUnmasking(stages=4), Ramp(1, 5, steps=4)))
    drive(process, 5)
    told = {"refills", "mean_stage", "fast_forwarded", "stages", "pool", "block_size", "rows"}
    assert process.metrics.keys() == told
    assert process.metrics["block_size"] == 5
    drive(process, 1)
    assert process.metrics["stages"] == 4


def test_draw_and_observe_take_turns(start, random_scores):
    process = start(Blockwise(ProgressiveUnmasking(), 2))
    with pytest.raises(RuntimeError, match="no draw"):
        process.observe(None)
    batch = process.draw()
    with pytest.raises(RuntimeError, match="twice"):
        process.draw()
    with pytest.raises(ValueError, match="needs the scores of all"):
        process.observe(random_scores((len(batch), 1), torch.Generator()))


# --- configs ---


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_prints_as_it_is_typed_and_round_trips(size):
    for inner in (MASKINGS[3], CHAINS[1], CHAINS[3]):
        masking = Blockwise(inner, size)
        assert from_json(to_json(masking)) == masking
        names = {
            name: globals()[name] for name in ("Blockwise", "IndependentMasking", "Bernoulli", "Bell", "Uniform")
        }
        names |= {name: globals()[name] for name in ("Clipped", "ExactCount", "ProgressiveUnmasking", "Ramp")}
        assert eval(repr(masking), names) == masking


@pytest.mark.parametrize(
    ("masking", "size", "message"),
    [
        (IndependentMasking(), 0, "size must be a positive"),
        (IndependentMasking(), 1.5, "size must be a positive"),
        (IndependentMasking(), ((2, 4),), "begin at 0"),
        (IndependentMasking(PPOTS()), 4, "learns from whole rows"),
        (IndependentMasking(PPOTS(online=True)), 4, "learns from whole rows"),
        ("puma", 4, "masking must be"),
        (Blockwise(IndependentMasking(), 2), 4, "masking must be"),
    ],
)
def test_bad_options_are_refused(masking, size, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Blockwise(masking, size)


def test_rows_drawn_by_importance_work_with_independent_blocks_alone(dataset_of, random_scores):
    data = dataset_of(LENGTHS)
    with pytest.raises(ValueError, match="importance"):
        Blockwise(ProgressiveUnmasking(), 2).start(RowStream(data, importance=RowImportance()), 4)
    process = Blockwise(IndependentMasking(), 2).start(RowStream(data, importance=RowImportance()), 4)
    batch = process.draw()
    before = process.rows.state_dict()
    process.observe(replace(random_scores(batch.masked.shape, torch.Generator()), nll=batch.masked.float()))
    assert str(process.rows.state_dict()) != str(before)  # it has learnt from what was drawn
    learnt = str(process.rows.state_dict())
    process.observe(replace(random_scores(batch.masked.shape, torch.Generator()), nll=9 * batch.masked.float()))
    assert str(process.rows.state_dict()) == learnt  # and once from each draw


def test_the_first_block_of_a_row_keeps_its_number_and_the_others_have_their_own(stream_of):
    """So a row of one block has the noise that it has without blocks, and no two blocks share theirs."""
    clean = stream_of([7, 6, 5]).take(3)
    blocks = Blocks(2, clean.length)
    row = blocks.units(clean).row.view(3, blocks.count)
    assert row[:, 0].tolist() == clean.row.tolist()
    assert len(set(row.flatten().tolist())) == row.numel()

"""Chains by themselves: the number of stages changes under way, stages follow a distribution, units may be empty."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unmask import Bell, Beta, Clipped, ProgressiveUnmasking, Ramp, Scores, Uniform
from unmask.noise import Purpose
from unmask.schedules import integer_at

GROWS, SHRINKS = ((0, 3), (4, 9), (7, 20)), ((0, 20), (4, 6), (7, 2))
LENGTHS = [5, 17, 3, 30, 11, 1, 24]
TIMES = [Uniform(), Clipped(0.5, 1.0), Clipped(0.3, 0.8), Beta(1, 2.5), Beta(1, 0.5), Bell()]


@pytest.fixture(scope="module")
def run(stream_of, random_scores):
    """Draw from a process step by step; yields (step, process, batch) before its scores are observed."""

    def steps(config, count, batch_size=6, seed=0, process=None, generator=None):
        process = process or config.start(stream_of(LENGTHS, seed=seed), batch_size, seed)
        generator = generator or torch.Generator().manual_seed(seed)
        for step in range(process.step, process.step + count):
            batch = process.draw()
            yield step, process, batch
            process.observe(random_scores(batch.masked.shape, generator))

    return steps


def stage_of(revealed, length, stages, end):
    """The stage of a chain that runs to `end`, a share of revealed tokens."""
    return min(Fraction(revealed, length) / end * stages // 1, stages - 1)


@pytest.mark.parametrize("pool", ["batch", 18])
@pytest.mark.parametrize("end", [Fraction(1), Fraction(3, 5)], ids=str)
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("stages", [GROWS, SHRINKS, Ramp(3, 12, 9), Ramp(12, 3, 6, after=2)], ids=str)
def test_nothing_is_thrown_away_when_the_number_of_stages_changes(run, stages, threshold, end, pool):
    time = Uniform() if end == 1 else Clipped(float(1 - end), 1.0)
    config = ProgressiveUnmasking(stages=stages, threshold=threshold, time=time, pool=pool)
    k, turn, state, dealt = integer_at(stages, 0), None, None, 0
    for step, process, batch in run(config, 14):
        assert batch.masked.any(1).all()
        clean, revealed, stage = process.clean, process.revealed & process.clean.maskable, process.stage[:, 0]
        changed = integer_at(stages, step) != k
        k = integer_at(stages, step)
        if state is not None:
            row, draw, before, old_stage = state
            same = (clean.row == row) & (clean.draw == draw)
            assert int((~same).sum()) == process.metrics["refills"]
            dealt += int((~same).sum())
            trained = torch.zeros_like(same)
            trained[turn] = True
            assert (same | trained).all()
            assert not (before & ~revealed)[same].any()
            assert (revealed.sum(1) > before.sum(1))[same & trained].all()  # every chain goes on
            assert torch.equal(revealed[~trained], before[~trained])  # but those that wait
            if not changed:
                assert torch.equal(stage[~trained], old_stage[~trained])
        if changed:
            counts = zip(revealed.sum(1).tolist(), clean.effective_length.tolist(), strict=True)
            assert stage.tolist() == [stage_of(r, n, k, end) for r, n in counts]
        assert (stage < k).all()
        assert process.chain.stages == k
        turn, state = process.turn, (clean.row.clone(), clean.draw.clone(), revealed.clone(), stage.clone())
    assert process.rows.position == process.pool + dealt + process.metrics["refills"]
    assert process.metrics["stages"] == integer_at(stages, 13)
    assert process.metrics["rows"] == process.rows.position


@given(
    stages=st.integers(1, 30), other=st.integers(1, 30), time=st.sampled_from(TIMES), pool=st.sampled_from([6, 12]),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_restaged_chain_is_where_its_revealed_ratio_says_and_one_that_ended_stays_so(
    run, stages, other, time, pool, seed
):
    config = ProgressiveUnmasking(stages=stages, time=time, pool=pool)
    assume(stages != other)  # without a change there is nothing to restage
    process = list(run(config, 2, seed=seed))[-1][1]
    clean, revealed = process.clean, process.revealed
    ended = torch.arange(pool) % 3 == seed % 3
    stage = config.chain(other, seed).restaged(clean, revealed, ended)
    assert (stage[ended] == other).all()
    on = ~ended
    stage = stage[on]
    ratio = ((clean.maskable & revealed).sum(1) / clean.effective_length.double())[on]
    low, high = (1 - time.quantile(1 - (stage + j).double() / other) for j in (0, 1))
    assert ((stage >= 0) & (stage < other)).all()
    assert ((low <= ratio + 1e-6) | (stage == 0)).all()
    assert ((ratio < high + 1e-6) | (stage == other - 1)).all()


@pytest.mark.parametrize("pool", ["batch", 18])
@pytest.mark.parametrize("stages", [GROWS, SHRINKS, Ramp(3, 12, 9)], ids=str)
@pytest.mark.parametrize("done", [2, 4, 5])
def test_a_process_restored_within_a_schedule_continues_identically(run, stream_of, same, stages, done, pool):
    config = ProgressiveUnmasking(stages=stages, threshold=0.6, pool=pool)
    original = list(run(config, done))[-1][1]
    state = copy.deepcopy(original.state_dict())
    resumed = config.start(stream_of(LENGTHS), 6)
    resumed.load_state_dict(state)
    expected, found = (
        [
            (batch, p.stage.clone())
            for _, p, batch in run(config, 6, process=process, generator=torch.Generator().manual_seed(1))
        ]
        for process in (original, resumed)
    )
    for (a, stage), (b, other) in zip(expected, found, strict=True):
        assert same(a, b)
        assert torch.equal(stage, other)


@pytest.mark.parametrize("pool", ["batch", 18])
def test_a_constant_schedule_is_a_number(run, same, pool):
    plain = run(ProgressiveUnmasking(stages=7, threshold=0.6, pool=pool), 9)
    table = run(ProgressiveUnmasking(stages=((0, 7), (3, 7)), threshold=0.6, pool=pool), 9)
    for (*_, a), (*_, b) in zip(plain, table, strict=True):
        assert same(a, b)


def test_after_a_change_of_stages_no_noise_is_used_twice(token_batch):
    """The random policy would else reveal the same positions first again: stage 2 of 4 comes after stage 2 of 8."""
    clean, config = token_batch(torch.zeros(400, 12, dtype=torch.int64)), ProgressiveUnmasking(stages=8)
    stage = torch.full((400,), 2)
    before, after = (config.chain(k, seed=0).uniforms(clean, 12, Purpose.REVEAL, stage) for k in (8, 4))
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.06


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_stages_of_a_beta_share_the_steps_of_a_chain_out_by_the_power_law(stream_of, random_scores, exponent):
    """A chain entered at a random stage has its ratio r with r^(1/e) uniform: P(r < x) = x^(1/e)."""
    ratio = 1 - rates(stream_of, random_scores, Beta(1, 1 / exponent), "batch")
    for x in (0.1, 0.3, 0.5, 0.8):
        assert float((ratio < x).double().mean()) == pytest.approx(x ** (1 / exponent), abs=0.04)


@pytest.mark.parametrize("pool", ["batch", 1000])
@pytest.mark.parametrize("time", TIMES, ids=str)
def test_a_chain_met_at_a_random_step_has_a_rate_of_its_time_distribution(stream_of, random_scores, time, pool):
    rate = rates(stream_of, random_scores, time, pool)
    low, high = time.support
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        expected = float(time.cdf(torch.tensor(low + x * (high - low), dtype=torch.float64)))
        assert float((rate < low + x * (high - low)).double().mean()) == pytest.approx(expected, abs=0.04)


def rates(stream_of, random_scores, time, pool):
    config = ProgressiveUnmasking(stages=10, time=time, pool=pool)
    process = config.start(stream_of([400] * 40, prompt=0), 500)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(3):
        batch = process.draw()
        found.append(batch.rate[:, 0])
        process.observe(random_scores(batch.masked.shape, generator))
    return torch.cat(found)


@pytest.mark.parametrize("pool", ["batch", 12])
@pytest.mark.parametrize("time", TIMES, ids=str)
def test_chains_of_every_time_distribution_stay_in_their_stages_and_end(run, time, pool):
    config = ProgressiveUnmasking(stages=6, time=time, pool=pool)
    refills, end = 0.0, 1 - time.support[0]
    for _, process, batch in run(config, 20 * (1 if pool == "batch" else 2)):
        length = batch.clean.effective_length
        revealed = length - batch.masked.sum(1)
        stage = process.stage[process.turn, 0].double()
        low = (1 - time.quantile(1 - stage / 6)) * length - 0.5
        most = (end * length - 1e-9).ceil() - 1
        assert (revealed >= torch.minimum(low, most) - 1e-6).all()
        assert (revealed < end * length).all()
        refills += process.metrics.get("refills", 0.0)
    assert refills >= 12


def test_units_without_a_maskable_position_end_at_once_and_disturb_no_other(token_batch, random_scores):
    flags = torch.ones(4, 6, dtype=torch.bool)
    flags[1] = flags[3] = False
    tokens, zero = torch.arange(24).view(4, 6), torch.zeros(4, dtype=torch.int64)
    chain = ProgressiveUnmasking(stages=3, threshold=0.6).chain(3, seed=1)
    scores = random_scores((4, 6), torch.Generator().manual_seed(0))
    (mixed, seen, extra), (full, other, _) = (
        (units, *chain.advance(units, chain.entry(units, zero), zero, scores)[::2])
        for units in (token_batch(tokens, flags), token_batch(tokens))
    )
    assert chain.ended(mixed, chain.entry(mixed, zero), zero).tolist() == [False, True, False, True]
    assert not (seen & ~mixed.maskable).any()
    assert torch.equal(seen[[0, 2]], other[[0, 2]])
    assert not extra[[1, 3]].any()
    assert not chain.ended(full, chain.entry(full, zero), zero).any()
    restaged = chain.restaged(mixed, seen, chain.ended(mixed, seen, zero))
    assert restaged[[1, 3]].tolist() == [3, 3]
    assert (restaged >= 0).all()


class Rounded(Uniform):
    """A law of one's own whose cdf leads back to the quantile but for what `check_law` lets pass."""

    def cdf(self, t):
        return (t + 9e-4).clamp(0, 1)


def test_a_chain_that_ran_ahead_is_never_put_behind_its_next_stage(token_batch):
    """Its stage is found by the law's cdf, which may be off by more than the token that it is ahead."""
    chain = ProgressiveUnmasking(64, "left_to_right", threshold=0.5, time=Rounded()).chain(64, seed=1)
    units, stage = token_batch(torch.zeros(300, 2000, dtype=torch.int64)), torch.full((300,), 10)
    confidence = torch.full((300, 2000), 0.1).log()
    confidence[:, -1] = math.log(0.9)
    _, after, extra = chain.advance(units, chain.entry(units, stage), stage, Scores(confidence))
    assert extra.sum() > 200
    assert (after >= 11).all()


@pytest.mark.parametrize("percent", range(100))
def test_a_chain_ends_just_where_its_masked_share_comes_down_to_the_support(token_batch, percent):
    """Where the share is the support's own low end, 53 of 100 at .53, rounding must not keep the chain running."""
    chain = ProgressiveUnmasking(time=Clipped(percent / 100, 1.0)).chain(8, seed=1)
    for length in (1, 3, 20, 100, 300):
        revealed = torch.ones(length + 1, length, dtype=torch.bool).tril(-1)  # none, one, ..., all of them
        units = token_batch(torch.zeros(length + 1, length, dtype=torch.int64))
        ended = chain.ended(units, revealed, torch.zeros(length + 1, dtype=torch.int64))
        assert ended.tolist() == [100 * (length - count) <= percent * length for count in range(length + 1)]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_chain_advances_the_same_whatever_units_are_beside_it(token_batch, random_scores, threshold):
    clean, zero = token_batch(torch.arange(40).view(5, 8)), torch.zeros(5, dtype=torch.int64)
    config = ProgressiveUnmasking(stages=4, threshold=threshold, policy="random")
    chain, units = config.chain(4, seed=2), torch.tensor([3, 1])
    scores = random_scores((5, 8), torch.Generator().manual_seed(0))
    before = chain.entry(clean, zero)
    copied = before.clone()
    some = chain.advance(clean[units], before[units], zero[units], scores[units])
    every = chain.advance(clean, before, zero, scores)
    assert all(torch.equal(a, b[units]) for a, b in zip(some, every, strict=True))
    assert torch.equal(before, copied)  # it changes nothing in place
    assert not zero.any()
    assert math.isfinite(float(every[2].sum()))
    if threshold is None:
        assert every[1].tolist() == [1] * 5
        assert not every[2].any()

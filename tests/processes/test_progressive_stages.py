"""Chains by themselves: the number of stages changes under way, stages are warped, units may be empty."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unmask import ProgressiveUnmasking, Ramp
from unmask.noise import Purpose
from unmask.processes import Chains
from unmask.schedules import integer_at

GROWS, SHRINKS = ((0, 3), (4, 9), (7, 20)), ((0, 20), (4, 6), (7, 2))
LENGTHS = [5, 17, 3, 30, 11, 1, 24]


@pytest.fixture(scope="module")
def run(stream_of, random_scores):
    """Draw from a process step by step; yields (step, process, batch) before its scores are observed."""

    def steps(config, count, pool=6, seed=0, process=None, generator=None):
        process = process or config.start(stream_of(LENGTHS, seed=seed), pool, seed)
        generator = generator or torch.Generator().manual_seed(seed)
        for step in range(process.step, process.step + count):
            batch = process.draw()
            yield step, process, batch
            process.observe(random_scores(batch.masked.shape, generator))

    return steps


def stage_of(revealed, length, stages):
    return Fraction(revealed, length) * stages // 1


@pytest.mark.parametrize("until", [1.0, 0.6])
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("stages", [GROWS, SHRINKS, Ramp(3, 12, 9), Ramp(12, 3, 6, after=2)], ids=str)
def test_nothing_is_thrown_away_when_the_number_of_stages_changes(run, stages, threshold, until):
    config = ProgressiveUnmasking(stages=stages, threshold=threshold, until=until)
    dealt, before, k = 6, None, integer_at(stages, 0)
    for step, process, batch in run(config, 14):
        if before is not None:
            same = (batch.clean.row == before.clean.row) & (batch.clean.draw == before.clean.draw)
            dealt += int((~same).sum())
            assert int((~same).sum()) == process.metrics["refills"]
            assert (batch.masked[same].sum(1) < before.masked[same].sum(1)).all()  # every chain goes on
            assert not (batch.masked[same] & ~before.masked[same][:, : batch.masked.shape[1]]).any()
        assert batch.masked.any(1).all()
        if integer_at(stages, step) != k:
            k = integer_at(stages, step)
            length = batch.clean.effective_length
            revealed = (length - batch.masked.sum(1)).tolist()
            expected = [stage_of(r, n, k) for r, n in zip(revealed, length.tolist(), strict=True)]
            assert process.stage.tolist() == expected
        assert (process.stage < process.chains.live).all()
        assert process.chains.stages == k
        before = batch
    assert process.rows.position == dealt + process.metrics["refills"]
    assert process.metrics["stages"] == integer_at(stages, 13)
    assert process.metrics["rows"] == process.rows.position


@given(
    stages=st.integers(1, 30), other=st.integers(1, 30), until=st.sampled_from([1.0, 0.5, 0.31]),
    exponent=st.sampled_from([1.0, 0.5, 2.0]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_restaged_chain_is_where_its_revealed_ratio_says_and_none_has_ended(
    run, stages, other, until, exponent, seed
):
    config = ProgressiveUnmasking(stages=stages, until=until, exponent=exponent)
    assume(stages != other)  # without a change there is nothing to restage
    process = list(run(config, 2, seed=seed))[-1][1]
    chains, masked = process.chains, process.masked
    chains.restage(other)
    length = chains.clean.effective_length.double()
    ratio = 1 - masked.sum(1) / length
    low, high = ((chains.stage + j) / other for j in (0, 1))
    assert torch.equal(chains.masked, masked)
    assert (chains.stage < chains.live).all()
    assert (low**exponent <= ratio + 1e-6).all()
    assert ((ratio < high**exponent + 1e-6) | (chains.stage == chains.live - 1)).all()


@pytest.mark.parametrize("stages", [GROWS, SHRINKS, Ramp(3, 12, 9)], ids=str)
@pytest.mark.parametrize("done", [2, 4, 5])
def test_a_process_restored_within_a_schedule_continues_identically(run, stream_of, same, stages, done):
    config = ProgressiveUnmasking(stages=stages, threshold=0.6)
    original = list(run(config, done))[-1][1]
    state = copy.deepcopy(original.state_dict())
    resumed = config.start(stream_of(LENGTHS), 6)
    resumed.load_state_dict(state)
    expected, found = (
        [
            (batch, p.stage)
            for _, p, batch in run(config, 6, process=process, generator=torch.Generator().manual_seed(1))
        ]
        for process in (original, resumed)
    )
    for (a, stage), (b, other) in zip(expected, found, strict=True):
        assert same(a, b)
        assert torch.equal(stage, other)


def test_a_constant_schedule_is_a_number(run, same):
    plain = run(ProgressiveUnmasking(stages=7, threshold=0.6), 9)
    table = run(ProgressiveUnmasking(stages=((0, 7), (3, 7)), threshold=0.6), 9)
    for (*_, a), (*_, b) in zip(plain, table, strict=True):
        assert same(a, b)


def test_after_a_change_of_stages_no_noise_is_used_twice(token_batch):
    """The random policy would else reveal the same positions first again: stage 2 of 4 comes after stage 2 of 8."""
    clean = token_batch(torch.zeros(400, 12, dtype=torch.int64))
    chains = Chains(ProgressiveUnmasking(stages=8), clean, torch.zeros(400, dtype=torch.int64), seed=0)
    stage = torch.full((400,), 2)
    before = chains.uniforms(clean, 12, Purpose.REVEAL, stage)
    chains.restage(4)
    after = chains.uniforms(clean, 12, Purpose.REVEAL, stage)
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.06


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_warped_stages_share_the_steps_of_a_chain_out_by_the_power_law(stream_of, random_scores, exponent):
    """A chain entered at a random stage has its ratio r with r^(1/e) uniform: P(r < x) = x^(1/e)."""
    process = ProgressiveUnmasking(stages=10, exponent=exponent).start(stream_of([400] * 40, prompt=0), 500)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(3):
        batch = process.draw()
        found.append(1 - batch.rate[:, 0])
        process.observe(random_scores(batch.masked.shape, generator))
    ratio = torch.cat(found)
    for x in (0.1, 0.3, 0.5, 0.8):
        assert float((ratio < x).double().mean()) == pytest.approx(x ** (1 / exponent), abs=0.04)


@pytest.mark.parametrize("exponent", [0.4, 2.0])
@pytest.mark.parametrize("until", [1.0, 0.5])
def test_warped_chains_stay_in_their_stages_and_end(run, exponent, until):
    config = ProgressiveUnmasking(stages=6, exponent=exponent, until=until)
    refills = 0.0
    for _, process, batch in run(config, 20):
        length = batch.clean.effective_length
        revealed = length - batch.masked.sum(1)
        low = (process.stage / 6) ** exponent * length - 0.5
        most = (until * length - 1e-9).ceil() - 1
        assert (revealed >= torch.minimum(low, most) - 1e-6).all()
        assert (revealed < until * length).all()
        refills += process.metrics.get("refills", 0.0)
    assert refills >= 12


def test_units_without_a_maskable_position_end_at_once_and_disturb_no_other(token_batch, random_scores):
    flags = torch.ones(4, 6, dtype=torch.bool)
    flags[1] = flags[3] = False
    tokens, zero = torch.arange(24).view(4, 6), torch.zeros(4, dtype=torch.int64)
    config = ProgressiveUnmasking(stages=3, threshold=0.6)
    scores = random_scores((4, 6), torch.Generator().manual_seed(0))
    mixed = Chains(config, token_batch(tokens, flags), zero, seed=1)
    full = Chains(config, token_batch(tokens), zero, seed=1)
    ended = mixed.advance(scores)
    full.advance(scores)
    assert ended[[1, 3]].all()
    assert not mixed.masked[[1, 3]].any()
    assert torch.equal(mixed.masked[[0, 2]], full.masked[[0, 2]])
    mixed.restage(9)
    assert (mixed.stage >= 0).all()
    assert math.isfinite(mixed.fast_forwarded)


def test_only_the_units_asked_for_move(token_batch, random_scores):
    clean, zero = token_batch(torch.arange(40).view(5, 8)), torch.zeros(5, dtype=torch.int64)
    config = ProgressiveUnmasking(stages=4)
    scores = random_scores((5, 8), torch.Generator().manual_seed(0))
    some, every = (Chains(config, clean, zero, seed=2) for _ in range(2))
    before, units = some.masked, torch.tensor([3, 1])
    ended, reference = some.advance(scores[units], units), every.advance(scores)
    assert torch.equal(ended, reference[units])
    assert torch.equal(some.masked[units], every.masked[units])
    assert torch.equal(some.masked[[0, 2, 4]], before[[0, 2, 4]])
    assert some.stage.tolist() == [0, 1, 0, 1, 0]

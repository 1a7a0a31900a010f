import copy
import itertools

import pytest
import torch
from scipy.stats import kstest

from unmask import ELBO, PPOTS, Bell, ExactCount, IndependentMasking, Mixture, ProgressiveUnmasking, Ramp
from unmask.processes.mixture import _spread_order

LENGTHS = [5, 17, 3, 30, 11, 2, 24, 9]
PUMA = ProgressiveUnmasking(stages=4, threshold=0.6)
SHARES = [0.25, 0.0, 1.0, ((0, 1.0), (3, 0.0)), ((0, 0.5), (2, 1.0), (4, 0.25), (6, 0.0)), Ramp(1.0, 0.0, 6)]
DRAWS = [
    IndependentMasking(),
    IndependentMasking(mask=ExactCount(), coupling="stratified", time=Bell()),
    IndependentMasking(coupling="antithetic", mirror=True),
]


@pytest.fixture(scope="module")
def run(stream_of, random_scores):
    """Draw `count` batches from a mix, giving it random scores with losses."""

    def batches(process, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            batch = process.draw()
            scores = random_scores(batch.masked.shape, generator)
            nll = -scores.log_confidence * batch.masked
            yield batch
            process.observe(type(scores)(scores.log_confidence, scores.margin, scores.entropy, nll))

    return batches


@pytest.fixture(scope="module")
def start(stream_of):
    def begin(config, batch_size=8, seed=0, **world):
        return config.start(stream_of(LENGTHS, seed=seed, **world), batch_size, seed)

    return begin


def is_drawn(batch):
    """Which rows are masked independently."""
    return batch.group < 0


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("independent", DRAWS, ids=lambda m: f"{m.coupling}-{m.mirror}")
def test_the_share_of_every_batch_is_the_schedule_in_whole_units(run, start, share, independent):
    from unmask.schedules import value_at

    process = start(Mixture(PUMA, independent, share), 16)
    unit = (2 if independent.mirror else 1) * (2 if independent.coupling == "antithetic" else 1)
    for step, batch in enumerate(run(process, 8)):
        drawn = int(is_drawn(batch).sum())
        assert len(batch) == 16
        assert drawn == unit * round(value_at(share, step) * 16 / unit)
        assert process.metrics["independent_share"] == drawn / 16
        assert batch.density is None
        assert not (batch.masked & ~batch.clean.maskable).any()


def test_a_share_of_zero_is_pure_puma(run, start, same):
    mix, pure = start(Mixture(PUMA, share=0.0)), start(PUMA)
    assert all(same(a, b) for a, b in zip(run(mix, 10), run(pure, 10), strict=True))


@pytest.mark.parametrize("independent", DRAWS, ids=lambda m: f"{m.coupling}-{m.mirror}")
def test_a_share_of_one_draws_the_independent_masks_alone(run, start, independent):
    mix, pure = start(Mixture(PUMA, independent, 1.0)), start(independent)
    for a, b in zip(run(mix, 4), run(pure, 4), strict=True):
        assert torch.equal(a.masked, b.masked)
        assert torch.equal(a.clean.tokens, b.clean.tokens)
        assert torch.equal(a.rate, b.rate)
        assert torch.equal(a.group, -1 - b.group)


def test_a_delay_starts_puma_as_if_the_run_began_there(run, start):
    """At the switch the pool is opened at once, its first stages spread evenly."""
    process = start(Mixture(PUMA, share=((0, 1.0), (3, 0.0))))
    for step, batch in enumerate(run(process, 8)):
        assert bool(is_drawn(batch).all()) == (step < 3)
        assert (len(process.progressive.running) == 0) == (step < 3)
        if step == 3:
            assert process.progressive.stage.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
            assert process.rows.position == 32  # three batches, and the pool


@pytest.mark.parametrize("share", SHARES, ids=str)
def test_every_row_of_the_stream_is_used_once_and_in_order_of_dealing(run, start, stream_of, share):
    """No row is drawn and dropped: those dealt are those drawn independently and those that had a chain."""
    process = start(Mixture(PUMA, share=share))
    used = set()
    for batch in run(process, 9):
        rows = list(zip(batch.clean.row.tolist(), batch.clean.draw.tolist(), strict=True))
        drawn = [row for row, flag in zip(rows, is_drawn(batch).tolist(), strict=True) if flag]
        assert not set(drawn) & used
        used |= set(rows)
    pool = process.progressive.clean
    used |= {(r, d) for r, d in zip(pool.row.tolist(), pool.draw.tolist(), strict=True) if r >= 0}
    dealt = stream_of(LENGTHS).take(process.rows.position)
    assert used == set(zip(dealt.row.tolist(), dealt.draw.tolist(), strict=True))


def test_chains_that_do_not_fit_wait_and_go_on(run, start):
    process = start(Mixture(ProgressiveUnmasking(stages=30), share=((0, 0.25), (2, 0.75), (6, 0.25))))
    seen, waited, before = {}, 0, list(range(8))
    for step, batch in enumerate(run(process, 9)):
        running = process.progressive.running.tolist()
        assert len(running) == (2 if 2 <= step < 6 else 6)
        assert not is_drawn(batch)[: len(running)].any()
        pool, masked = process.progressive.clean, process.progressive.masked
        for slot, (row, draw) in enumerate(zip(pool.row.tolist(), pool.draw.tolist(), strict=True)):
            now = (row, draw, masked[slot].nonzero()[:, 0].tolist())
            if slot not in before:
                assert now == seen[slot]
                waited += row >= 0
            seen[slot] = now
        before = running
    assert waited == 4 * 4


def test_stratified_rows_of_a_mix_have_one_in_each_stratum_of_their_own_number(run, start):
    masking = IndependentMasking(coupling="stratified")
    process = start(Mixture(PUMA, masking, ((0, 0.5), (4, 1.0), (6, 0.25))), 16)
    for step, batch in enumerate(run(process, 8)):
        t = batch.rate[is_drawn(batch)][:, 0]
        count = 8 if step < 4 else 16 if step < 6 else 4
        assert sorted((t * count).long().tolist()) == list(range(count))


def test_independent_rates_of_a_mix_have_their_distribution(run, start):
    masking = IndependentMasking(time=Bell(), coupling="stratified")
    process = start(Mixture(PUMA, masking, 0.5), 4)
    t = torch.cat([batch.rate[is_drawn(batch)][:, 0] for batch in run(process, 200)])
    assert kstest(masking.time.cdf(t).numpy(), "uniform").pvalue > 1e-3


def test_learned_rates_see_the_losses_of_their_own_rows(run, start):
    time = PPOTS(online=True, grid=6)
    process = start(Mixture(PUMA, IndependentMasking(time), 0.5))
    assert process.needs == ("log_confidence",)
    drawn = sum(int(is_drawn(batch).sum()) for batch in run(process, 6))
    assert float(process.time._sums[:, 0].sum()) == drawn == 24


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("done", [0, 2, 5])
def test_a_resumed_mix_continues_identically(run, start, same, share, done, tmp_path):
    from unmask.store.checkpoint import load_state, save_state

    config = Mixture(
        ProgressiveUnmasking(stages=((0, 3), (4, 8)), policy="random"),
        IndependentMasking(coupling="stratified"),
        share,
    )
    original, resumed = start(config), start(config)
    list(run(original, done))
    save_state(tmp_path / "state", original.state_dict())
    expected = [copy.deepcopy(batch) for batch in run(original, 5, seed=1)]
    resumed.load_state_dict(load_state(tmp_path / "state"))
    assert all(same(a, b) for a, b in zip(expected, run(resumed, 5, seed=1), strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 12, 24, 64])
def test_chains_lie_evenly_over_the_ranks_whatever_their_number(size):
    order = _spread_order(size)
    assert sorted(order.tolist()) == list(range(size))
    for ranks in (w for w in range(1, size + 1) if size % w == 0):
        for chains in range(size + 1):
            counts = (order < chains).view(ranks, -1).sum(1)
            assert int(counts.max() - counts.min()) <= (1 if size & (size - 1) == 0 else 2)


def test_a_mix_has_no_density_and_the_elbo_refuses_it(run, start):
    config = Mixture(PUMA, share=0.5)
    assert not config.has_density
    with pytest.raises(ValueError, match="ELBO cannot use"):
        ELBO().check(config)
    with pytest.raises(ValueError, match="density"):
        ELBO().weights(start(config).draw())
    assert Mixture(ProgressiveUnmasking(until=0.5), IndependentMasking()).support == (0.0, 1.0)
    assert Mixture(ProgressiveUnmasking(until=0.25), IndependentMasking(Bell(0.5, 0.01))).support[1] == 1.0


@pytest.mark.parametrize("share", [-0.1, 1.5, ((0, 0.5), (3, 2.0)), Ramp(0.5, -1, 10), "half", ()], ids=str)
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        Mixture(PUMA, share=share)


@pytest.mark.parametrize(
    ("config", "batch_size", "message"),
    [
        (Mixture(PUMA, IndependentMasking(mirror=True)), 7, "units of 2"),
        (Mixture(PUMA, IndependentMasking(coupling="antithetic")), 7, "pairs units"),
        (Mixture(PUMA, share=0.05), 8, "rounds to none or all"),
        (Mixture(PUMA, share=((0, 1.0), (5, 0.99))), 8, "rounds to none or all"),
    ],
    ids=str,
)
def test_a_batch_that_does_not_fit_is_refused_at_the_start(start, config, batch_size, message):
    with pytest.raises(ValueError, match=message):
        start(config, batch_size)


def test_missing_or_misshapen_scores_are_refused(start, random_scores):
    process = start(Mixture(PUMA, share=0.5))
    shape = process.draw().masked.shape
    scores = random_scores(shape, torch.Generator().manual_seed(0))
    for bad in (None, scores[:-1], scores.map(lambda value: value[:, :-1])):
        with pytest.raises(ValueError, match="needs the scores of all"):
            process.observe(bad)
    process.observe(scores)
    assert list(itertools.islice(process.metrics, 1)) == ["refills"]

import copy
import itertools
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask import PPOTS, Bell, Blockwise, Clipped, MaskedBatch, ProgressiveUnmasking, Scores, Uniform, policies
from unmask.policies import POLICIES
from unmask.processes import dealt_anew

SCORED = ("confidence", "margin", "entropy")
PAPERS = (Uniform(),)  # rates of the paper's chain


@dataclass
class Step:
    """One step of a run: what was drawn from which places of the pool, at which stages, the scores given, and which
    places got a new row."""

    batch: MaskedBatch
    place: Tensor
    stage: Tensor
    scores: Scores
    replaced: Tensor


@pytest.fixture(scope="module")
def drive(stream_of, random_scores):
    """Run a process on random scores and tell what happened: (steps, process)."""

    def run(config, lengths, pool, steps, seed=0, score=random_scores):
        process = config.start(stream_of(lengths, seed=seed, gaps=True), pool, seed)
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(steps):
            place = process.turn
            stage, batch = process.stage[place, 0], process.draw()
            scores = score(batch.masked.shape, generator)
            process.observe(scores)
            now = process.clean[place]
            fresh = (now.row != batch.clean.row) | (now.draw != batch.clean.draw)
            found.append(Step(batch, place, stage, scores, fresh))
        return found, process

    return run


@st.composite
def runs(draw, thresholds=(None, 0.2, 0.6, 0.999), times=PAPERS, policies=tuple(POLICIES)):
    """A config and the sizes of a run long enough for every first chain to end."""
    batch, turns, seed = draw(st.integers(1, 6)), draw(st.sampled_from([1, 1, 3])), draw(st.integers(0, 999))
    config = ProgressiveUnmasking(
        pool=batch * turns,
        stages=draw(st.integers(1, 24)),
        threshold=draw(st.sampled_from(thresholds)),
        time=draw(st.sampled_from(times)),
        policy=draw(st.sampled_from(policies)),
    )
    lengths = draw(st.lists(st.integers(1, 18 // turns), min_size=1, max_size=6))
    return config, lengths, batch, turns * (min(config.stages, max(lengths)) + 3), seed


def chains(steps):
    """The chains of a run: lists of (stage, masked, step, slot) of one row, from its first draw on."""
    running = {}
    for step in steps:
        for slot, place in enumerate(step.place.tolist()):
            running.setdefault(place, []).append((int(step.stage[slot]), step.batch.masked[slot], step, slot))
            if step.replaced[slot]:
                yield running.pop(place)
    yield from running.values()


def replaced_places(steps):
    return torch.cat([step.place[step.replaced] for step in steps]).unique()


@given(run=runs(times=(Uniform(), Clipped(0.6, 1.0), Bell())))
@settings(max_examples=15, deadline=None)
def test_a_chain_reveals_its_row_strictly_and_ends_within_its_stages(drive, dataset_of, run):
    config, lengths, *_ = run
    rows = dataset_of(lengths, gaps=True)
    steps, process = drive(*run)
    for chain in chains(steps):
        for (stage, masked, step, slot), following in zip(chain, [*chain[1:], None], strict=True):
            clean = step.batch.clean[slot : slot + 1]
            stored = rows[int(clean.row)]
            assert clean.tokens[0, : len(stored["tokens"])].tolist() == stored["tokens"]
            assert clean.maskable[0, : len(stored["tokens"])].tolist() == stored["maskable"]
            assert not (masked & ~clean.maskable[0]).any()
            assert masked.any()  # nothing fully revealed is ever drawn
            assert float(step.batch.rate[slot]) == int(masked.sum()) / lengths[int(clean.row)]
            if following is not None:
                later = following[1][: len(masked)]
                assert not (later & ~masked).any()
                assert int(later.sum()) < int(masked.sum())
                assert following[0] > stage
        assert len(chain) <= config.stages - chain[0][0]
    # Long enough that every row of the first pool was replaced.
    assert replaced_places(steps).tolist() == list(range(process.pool))


@given(run=runs(thresholds=(None, None, 0.8, 0.97)))
@settings(max_examples=15, deadline=None)
def test_the_revealed_share_lies_in_its_stage_up_to_rounding_after_a_fast_forward_too(drive, run):
    config, *_ = run
    for step in drive(*run)[0]:
        length = step.batch.clean.effective_length
        revealed = length - step.batch.masked.sum(1)
        width = length / config.stages
        low = (step.stage * width - 0.5).clamp(max=length - 1)
        assert (revealed >= low - 1e-4).all()
        # Where a stage is less than a token wide, one token a step runs ahead of the stages.
        assert ((revealed <= (step.stage + 1) * width + 0.5 + 1e-4) | (length <= config.stages)).all()


@given(run=runs(times=(Uniform(), Clipped(0.6, 1.0), Bell())))
@settings(max_examples=15, deadline=None)
def test_every_row_dealt_is_used_in_stream_order_and_none_is_drawn_ahead(drive, stream_of, run):
    _, lengths, _, _, seed = run
    steps, process = drive(*run)
    pool = stream_of(lengths, seed=seed).take(process.pool)
    now = list(zip(pool.row.tolist(), pool.draw.tolist(), strict=True))
    dealt = stream_of(lengths, seed=seed).take(process.rows.position)
    following = iter(list(zip(dealt.row.tolist(), dealt.draw.tolist(), strict=True))[process.pool :])
    for step in steps:
        drawn = zip(step.batch.clean.row.tolist(), step.batch.clean.draw.tolist(), strict=True)
        assert list(drawn) == [now[place] for place in step.place.tolist()]
        for place in step.place[step.replaced].tolist():
            now[place] = next(following)
    assert next(following, None) is None
    assert process.rows.position == process.pool + sum(int(step.replaced.sum()) for step in steps)


def coarse_scores(shape, generator):
    """Make scores with many ties."""
    values = [-torch.randint(1, 5, shape, generator=generator).double() / 2 for _ in range(3)]
    return Scores(values[0], values[1].exp(), -values[2])


@given(run=runs(policies=SCORED, thresholds=(None, 0.3)), coarse=st.booleans())
@settings(max_examples=15, deadline=None)
def test_what_is_revealed_is_the_top_of_the_policy_and_all_above_the_threshold(drive, random_scores, run, coarse):
    config, *sizes = run
    checked = 0
    steps, _ = drive(config, *sizes, score=coarse_scores if coarse else random_scores)
    for chain in chains(steps):
        for (_, masked, step, slot), (_, later, *_) in itertools.pairwise(chain):
            scores = step.scores
            values = {"confidence": scores.log_confidence, "margin": scores.margin, "entropy": -scores.entropy}
            priority = values[config.policy][slot].tolist()
            order = sorted(masked.nonzero()[:, 0].tolist(), key=lambda p: (-priority[p], p))
            left = later.nonzero()[:, 0].tolist()
            gone = [p for p in order if p not in left]
            sure = set()
            if config.threshold is not None:
                bar = math.log(config.threshold)
                sure = {p for p in order if float(scores.log_confidence[slot, p]) > bar}
            assert sure <= set(gone)
            # The top of the order, of some length, and what is sure besides.
            assert any(set(gone) == set(order[:n]) | sure for n in range(1, len(order)))
            checked += 1
    assert checked or config.stages == 1 or max(sizes[0]) <= 2 or config.threshold is not None


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    ("stages", "batch_size", "pool"),
    [(8, 32, 32), (8, 12, 12), (8, 8, 8), (12, 4, 4), (64, 8, 8), (1, 4, 4), (8, 4, 32), (64, 4, 8)],
)
def test_first_stages_are_spread_evenly_over_the_global_pool(stream_of, stages, batch_size, pool, world_size):
    parts = [
        ProgressiveUnmasking(stages=stages, pool=pool).start(
            stream_of([70] * 9, rank=rank, world_size=world_size), batch_size
        )
        for rank in range(world_size)
    ]
    stage = torch.cat([part.stage[:, 0] for part in parts])
    counts = torch.bincount(stage, minlength=stages)
    assert int(counts.max() - counts.min()) <= 1
    # No stage is further from a used one than evenness demands, the ends included.
    used = torch.cat([stage.unique(), torch.tensor([stages])])
    assert int(used[0]) == 0
    assert int(used.diff().max()) <= math.ceil(stages / min(stages, pool))
    for part in parts:  # each rank's first rows are masked to the extent of their stages
        drawn = part.stage[part.turn, 0]
        share = 1 - part.draw().rate[:, 0]
        assert ((share * stages - drawn >= -stages / 140) & (share * stages - drawn <= 1 + stages / 140)).all()


def test_the_revealed_share_is_uniform_within_the_stage(drive):
    steps, _ = drive(ProgressiveUnmasking(stages=4, pool="batch"), [40] * 50, 400, 3)
    counts = torch.zeros(11)
    for step in steps:
        within = 40 - step.batch.masked.sum(1) - 10 * step.stage
        counts += torch.bincount(within[step.stage < 3], minlength=11)  # the last stage stops a token short
    expected = torch.full((11,), float(counts.sum()) / 10)
    expected[[0, 10]] /= 2  # rounding: the ends have half a token's width
    assert float(((counts - expected) ** 2 / expected).sum()) < 10 + 5 * 20**0.5


def test_rows_enter_with_a_random_choice_revealed(stream_of):
    process = ProgressiveUnmasking(stages=4).start(stream_of([40] * 400, prompt=0), 400)
    middle = ((process.stage == 1) | (process.stage == 2)).any(1).nonzero()[:, 0]
    revealed = ~process.draw().masked[middle]
    assert len(revealed.unique(dim=0)) == len(middle)  # every row chooses for itself
    share = revealed.double().mean(0)
    assert ((share - revealed.double().mean()).abs() < 4 * 0.5 / len(middle) ** 0.5).all()


def test_a_threshold_never_met_changes_nothing_and_one_always_met_ends_every_chain(drive, same):
    lengths, sizes = [5, 17, 3, 30], (4, 12)
    plain, _ = drive(ProgressiveUnmasking(stages=6), lengths, *sizes)
    never, _ = drive(ProgressiveUnmasking(stages=6, threshold=1 - 1e-12), lengths, *sizes)
    assert all(same(a.batch, b.batch) for a, b in zip(plain, never, strict=True))
    always, process = drive(ProgressiveUnmasking(stages=6, threshold=1e-6), lengths, *sizes)
    assert all(step.replaced.all() for step in always)
    assert process.metrics["refills"] == 4


@pytest.mark.parametrize("stages", [1, 3, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_a_last_token_that_stays_below_the_threshold_does_not_keep_its_row(drive, stages, length):
    """The livelock of pitfall 3: all but one token are sure at once, the last never is."""

    def score(shape, generator):
        confidence = torch.full(shape, math.log(0.99)).double()
        confidence[:, -1] = math.log(0.1)
        return Scores(confidence)

    config = ProgressiveUnmasking(stages=stages, threshold=0.9)
    steps, _ = drive(config, [length] * 5, 3, 2 * stages + 2, score=score)
    for chain in chains(steps):
        assert len(chain) <= min(stages, 2)


@pytest.mark.parametrize("low", [0.9, 0.75, 0.5, 0.3])
def test_no_row_is_drawn_once_its_rate_has_left_the_support(drive, low):
    for stages in (1, 3, 7):
        steps, _ = drive(ProgressiveUnmasking(stages=stages, time=Clipped(low, 1.0)), [4, 9, 20, 2], 16, 10)
        assert all((step.batch.rate > low).all() for step in steps)


@given(run=runs(times=(Uniform(), Clipped(0.5, 1.0), Bell())), done=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_a_process_restored_mid_chain_continues_identically(drive, stream_of, random_scores, same, run, done):
    config, lengths, batch_size, _, seed = run
    _, process = drive(config, lengths, batch_size, done, seed)
    state = process.state_dict()
    frozen = copy.deepcopy(state)
    resumed = config.start(stream_of(lengths, seed=seed, gaps=True), batch_size, seed)
    for origin in (process, resumed):
        if origin is resumed:
            origin.load_state_dict(state)
        generator, found = torch.Generator().manual_seed(1), []
        for _ in range(5):
            batch = origin.draw()
            found.append(batch)
            origin.observe(random_scores(batch.masked.shape, generator))
        if origin is process:
            expected = found
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))
    for name, value in frozen["pool"].items():  # what was saved does not move on with the run
        assert torch.equal(value, state["pool"][name])
    assert frozen["rows"] == state["rows"]


OTHERS = {
    "stages": ({"stages": 2}, "stages: 4 -> 2"),
    "policy": ({"policy": "margin"}, "policy: confidence -> margin"),
    "threshold": ({"threshold": 0.5}, "threshold: None -> 0.5"),
    "time": ({"time": Bell()}, "time"),
    "pool": ({"pool": 16}, "pool: 8 -> 16"),
}


@pytest.mark.parametrize("field", [field.name for field in fields(ProgressiveUnmasking)])
@pytest.mark.parametrize("done", [0, 5])
def test_chains_of_another_config_are_refused(drive, stream_of, field, done):
    change, said = OTHERS[field]
    config = ProgressiveUnmasking(stages=4, pool=8)
    state = drive(config, [5] * 20, 4, done)[1].state_dict()
    with pytest.raises(ValueError, match=f"another run .*{said}.*resume with what it had"):
        replace(config, **change).start(stream_of([5] * 20), 4).load_state_dict(state)


@pytest.mark.parametrize(
    ("batch", "seed", "size", "said"),
    [(8, 0, None, "batch_size: 4 -> 8"), (4, 1, None, "seed: 0 -> 1"), (4, 0, 2, "size: None -> 2")],
)
def test_so_is_another_batch_seed_or_size_of_blocks(stream_of, batch, seed, size, said):
    config = ProgressiveUnmasking(stages=4, pool=8)
    state = config.start(stream_of([5] * 20), 4).state_dict()
    other = config if size is None else Blockwise(config, size)
    with pytest.raises(ValueError, match=said):
        other.start(stream_of([5] * 20), batch, seed).load_state_dict(state)


@pytest.mark.parametrize(
    "same",
    [
        ProgressiveUnmasking(stages=4, pool=4),
        ProgressiveUnmasking(stages=4, policy=policies.confidence, pool="batch"),
        ProgressiveUnmasking(stages=4),  # as many as the rows
    ],
    ids=["pool", "function", "default"],
)
def test_another_way_to_say_the_same_is_not_refused(stream_of, same):
    state = ProgressiveUnmasking(stages=4, pool="batch").start(stream_of([5] * 4), 4).state_dict()
    same.start(stream_of([5] * 4), 4).load_state_dict(state)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_part_of_a_pool_is_refused_where_it_does_not_belong(stream_of, rank):
    """On another rank, on another number of them, or of a smaller batch and pool that have as many rows to a rank."""
    config = ProgressiveUnmasking(stages=4, pool=16)
    states = [config.start(stream_of([5] * 40, rank=r, world_size=2), 8).state_dict() for r in range(2)]

    def start(pool, batch, rank=0, world_size=1):
        return replace(config, pool=pool).start(stream_of([5] * 40, rank=rank, world_size=world_size), batch)

    start(16, 8, rank, 2).load_state_dict(states[rank])
    with pytest.raises(ValueError, match=rf"8 chains from number {8 * rank} on of.*has 8 from {8 - 8 * rank} on"):
        start(16, 8, 1 - rank, 2).load_state_dict(states[rank])
    with pytest.raises(ValueError, match=rf"8 chains from number {8 * rank} on of.*has 16 from 0 on.*dealt_anew"):
        start(16, 8).load_state_dict(states[rank])
    with pytest.raises(ValueError, match="pool: 16 -> 8; batch_size: 8 -> 4"):
        start(8, 4).load_state_dict(states[rank])
    start(16, 8).load_state_dict(dealt_anew(states, 0, 1))


def test_drawing_twice_without_scores_raises(stream_of, random_scores):
    process = ProgressiveUnmasking(stages=4).start(stream_of([5, 6]), 2)
    batch = process.draw()
    with pytest.raises(RuntimeError, match="without observe"):
        process.draw()
    process.observe(random_scores(batch.masked.shape, torch.Generator().manual_seed(0)))
    process.draw()


def test_scores_without_a_draw_raise(stream_of, random_scores):
    process = ProgressiveUnmasking(stages=4).start(stream_of([5, 6]), 2)
    scores = random_scores(process.draw().masked.shape, torch.Generator().manual_seed(0))
    process.observe(scores)
    with pytest.raises(RuntimeError, match="draw"):
        process.observe(scores)


@pytest.mark.parametrize("pool", ["batch", 6])
def test_missing_misshapen_and_broken_scores_raise_and_leave_the_pool_as_it_was(stream_of, random_scores, same, pool):
    process = ProgressiveUnmasking(stages=4, pool=pool).start(stream_of([5, 6]), 2)
    batch, before = process.draw(), copy.deepcopy(process.state_dict())
    good = random_scores(batch.masked.shape, torch.Generator().manual_seed(0))
    for bad in (None, good[:1], good.map(lambda t: t[:, 1:])):
        with pytest.raises(ValueError, match="needs the scores of all"):
            process.observe(bad)
    with pytest.raises(ValueError, match="NaN"):
        process.observe(replace(good, log_confidence=torch.full_like(good.log_confidence, torch.nan)))
    assert process.step == 0
    assert process.rows.state_dict() == before["rows"]
    assert all(torch.equal(value, before["pool"][name]) for name, value in process.state_dict()["pool"].items())
    process.observe(good)
    assert process.step == 1
    assert not torch.equal(process.revealed, before["pool"]["revealed"])


def test_a_process_asks_for_what_its_policy_and_threshold_read(stream_of):
    def needs(**options):
        return ProgressiveUnmasking(**options).start(stream_of([5]), 1).needs

    assert needs(policy="margin") == ("margin",)
    assert needs(policy="random") == ()
    assert set(needs(policy="entropy", threshold=0.9)) == {"entropy", "log_confidence"}
    assert "nll" not in needs(policy=lambda scores, noise: noise)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 0}, {"stages": 2.0}, {"stages": True}, {"threshold": 0.0}, {"threshold": 1.0}, {"threshold": 9},
        {"time": PPOTS()}, {"time": PPOTS(online=True)}, {"policy": "confident"},
        {"pool": 0}, {"pool": "all"},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"stages|threshold|time|policy|pool"):
        ProgressiveUnmasking(**options)


@pytest.mark.parametrize("pool", [4.0, True])
def test_a_pool_of_another_type_is_refused(pool):
    with pytest.raises(TypeError, match="pool must be an integer or 'batch' or None"):
        ProgressiveUnmasking(pool=pool)

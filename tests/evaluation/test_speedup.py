"""The statistics of a comparison, on curves written by hand: every number below can be worked out on paper."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from unmask.evaluation.estimate import deviation_of, mean_of
from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.evaluation.speedup import MEASURES, NOT_FINITE, Measure, Paired, Run

SOLVED, NATS, LOSS = MEASURES


def _record(arm: str, seed: int, values, *, key="solved", steps=40, role="compare", width=0.0, **more):
    every = steps / (len(values) - 1)
    curve = [
        {"step": every * i, "seconds": 0.5 * every * i, "tokens": 8 * every * i, key: value}
        | ({"interval": [value - width / 2, value + width / 2]} if width else {})
        for i, value in enumerate(values)
    ]
    record = {"study": "s", "control": "a", "arm": arm, "seed": seed, "steps": steps, "role": role, "curve": curve}
    return record | {"finals": {}, "config": {}, "training": {}, "parameters": 1, "provenance": {}} | more


def _run(*values: float, key="solved") -> Run:
    return Results.of([_record("a", 1, values, key=key)]).runs[0]


@pytest.mark.parametrize(
    ("values", "target", "step"),
    [
        ((0.0, 0.5, 1.0, 1.0, 1.0), 0.25, 5.0),  # half way to the second evaluation
        ((0.0, 0.5, 1.0, 1.0, 1.0), 0.5, 10.0),
        ((0.0, 0.5, 1.0, 1.0, 1.0), 0.75, 15.0),
        ((0.0, 0.6, 0.4, 0.6, 0.8), 0.5, 25.0),  # the first time it is not held
        ((0.0, 0.6, 0.4, 0.6, 0.4), 0.5, None),
        ((0.0, 0.1, 0.2, 0.3, 0.9), 0.5, None),  # nobody knows whether the last one would have been held
        ((0.5, 0.6, 0.7, 0.8, 0.9), 0.5, 0.0),
        ((0.0, 0.1, 0.2, 0.3, 0.4), 0.5, None),
    ],
)
def test_a_target_counts_where_two_evaluations_hold_it_and_is_never_extrapolated(values, target, step):
    run = _run(*values)
    assert run.reached(SOLVED, target, "step") == step
    assert run.reached(SOLVED, target, "seconds") == (None if step is None else step / 2)
    assert run.reached(SOLVED, target, "tokens") == (None if step is None else step * 8)
    fallen = _run(*(1 - value for value in values), key="nats_per_token")
    assert fallen.reached(NATS, 1 - target, "step") == (step if step is None else pytest.approx(step))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_good(bad):
    """Neither does a line lead up from it, nor is an arm that ends so as good as the control."""
    rising = [5.0, bad, 3.0, 2.0, 1.0]
    assert _run(*rising, key="nats_per_token").reached(NATS, 4.0, "step") == 20
    results = _study([[5.0, 4.0, 3.0, 2.0, 1.0]] * 3, [[5.0, 4.0, 3.0, 2.0, bad]] * 3, key="nats_per_token")
    end = results.difference(results.values("b", 40), results.values("a", 40))
    assert end is not None
    assert end.verdict("better", "worse") == NOT_FINITE


def _study(control, arm, **settings) -> Results:
    """Two arms, a run for each row of values."""
    return Results.of(
        [
            _record(name, seed, values, **settings)
            for name, rows in (("a", control), ("b", arm))
            for seed, values in enumerate(rows)
        ]
    )


def _straight(slope: float) -> list[float]:
    return [slope * i for i in range(5)]


def test_ratio_is_the_geometric_mean_over_pairs_with_the_t_interval_of_its_logarithm():
    slow, fast = (0.05, 0.06, 0.07), (0.1, 0.18, 0.14)  # twice, three times, twice as fast
    results = _study([_straight(s) for s in slow], [_straight(s) for s in fast])
    own, other = results.speeds(40, [0.1])[::-1]
    found = own.ratio()
    assert found is not None
    logs = [math.log(b / a) for a, b in zip(slow, fast, strict=True)]
    low, high = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert found.estimate.value == pytest.approx((2 * 3 * 2) ** (1 / 3))
    assert (found.estimate.low, found.estimate.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert found.pairs == 3
    assert other.arm == "a"
    assert other.ratio().estimate.value == pytest.approx(1)
    for of in ("seconds", "tokens"):
        assert own.ratio(of).estimate.value == pytest.approx(found.estimate.value)


RISING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]


def test_the_weaker_end_is_a_target_that_both_reach():
    """Where the arm ends better it is the control's: .4 after 32 and .8 after 40 steps; the arm's after 16 and 24."""
    control = [RISING, [0.0, 0.1, 0.2, 0.3, 0.4, 0.8]]
    results = _study(control, [[0.0, 0.2, 0.4, 0.6, 0.7, 0.7], [0.0, 0.2, 0.4, 0.8, 0.9, 0.9]])
    arm = results.speeds(40)[-1]
    assert (arm.arm, arm.target, arm.ends, arm.reached) == ("b", None, "a", (2, 2))
    assert arm.costs["step"] == {0: pytest.approx(16), 1: pytest.approx(24)}
    assert arm.control["step"] == {0: pytest.approx(32), 1: pytest.approx(40)}
    assert arm.ratio("seconds").estimate.value == pytest.approx((2 * 40 / 24) ** 0.5)
    mixed = _study(control, [control[1], RISING]).speeds(40)[-1]
    assert mixed.ends is None
    assert mixed.ratio().estimate.value == pytest.approx(1)


def test_turning_round_turns_the_ratio_to_the_weaker_end_round():
    rows = (
        [RISING, [0.0, 0.1, 0.3, 0.2, 0.5, 0.6]],
        [[0.0, 0.3, 0.35, 0.5, 0.4, 0.5], [0.0, 0.2, 0.3, 0.3, 0.4, 0.45]],
    )
    forth, back = (_study(*pair).to_weaker_end("b", 40).ratio().estimate for pair in (rows, rows[::-1]))
    assert forth.value * back.value == pytest.approx(1)
    assert forth.value != pytest.approx(1)


def test_the_weaker_end_tells_arms_of_one_law_apart_no_more_often_than_its_interval_says():
    """800 studies of noise on one curve: faster, slower 2.5% each, within three standard errors; the ratio is 1."""
    draw = np.random.default_rng(0)
    clean = 0.8 * (1 - np.exp(-np.arange(11) / 3))
    found = []
    for _ in range(800):
        rows = draw.normal(clean, np.where(np.arange(11) > 0, 0.03, 0.0), (2, 5, 11))
        found.append(_study(rows[0].tolist(), rows[1].tolist()).to_weaker_end("b", 40).ratio())
    signs = [ratio.sign for ratio in found]
    assert max(signs.count(1), signs.count(-1)) <= 800 * (0.025 + 3 * (0.025 * 0.975 / 800) ** 0.5)
    logs = [math.log(ratio.estimate.value) for ratio in found]
    assert abs(np.mean(logs)) < 3 * np.std(logs) / len(logs) ** 0.5


@pytest.mark.parametrize("arm", [[0.5, 0.6, 0.6, 0.6, 0.6, 0.6], [0.0, 0.4, 0.4]])
def test_no_weaker_end_of_a_run_that_begins_as_good_or_is_seldom_evaluated(arm):
    results = _study([RISING], [arm])
    assert results.to_weaker_end("b", 40) is None
    assert None not in [speed.target for speed in results.speeds(40)]


def test_an_arm_that_shares_no_seed_has_no_verdict():
    results = Results.of([_record("a", 1, RISING), _record("b", 2, RISING)])
    assert {speed.verdict() for speed in results.speeds(40) if speed.arm == "b"} == {""}


def test_turning_arm_and_control_round_turns_the_ratio_round():
    rows = [_straight(s) for s in (0.05, 0.06, 0.07)], [_straight(s) for s in (0.1, 0.18, 0.14)]
    forth, back = (_study(*pair).speeds(40, [0.1])[-1].ratio().estimate for pair in (rows, rows[::-1]))
    assert forth.value * back.value == pytest.approx(1)
    assert (forth.low * back.high, forth.high * back.low) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("slow", "fast", "words"),
    [
        ((5,) * 5, (10, 11, 10, 11, 10), "faster"),
        ((10, 11, 10, 11, 10), (5,) * 5, "slower"),
        ((5, 6, 5, 6, 5), (6, 5, 6, 5, 5), "not distinguishable"),
        ((5,) * 3, (10, 11, 10), "faster (indication)"),
        ((5,), (10,), "no verdict from one seed"),
        ((5,) * 5, (10, 10, 1, 10, 10), "target not reached"),
        ((1, 5, 5, 5, 5), (10,) * 5, "target not reached by the control"),
    ],
)
def test_verdicts(slow, fast, words):
    results = _study([_straight(0.01 * s) for s in slow], [_straight(0.01 * s) for s in fast])
    assert results.speeds(40, [0.12])[-1].verdict() == words


@pytest.mark.parametrize(
    ("control", "arm"),
    [([0.5] * 5, [0.5] * 5), ([0.5] * 5, _straight(0.2)), (_straight(0.2), [0.5] * 5)],
)
def test_a_target_met_before_the_first_step_has_no_ratio_and_says_so(control, arm):
    """One of the two runs held it at step 0: nothing can be divided, but it was reached."""
    speed = _study([control, _straight(0.2)], [arm, _straight(0.3)]).speeds(40, [0.3])[-1]
    assert speed.reached == (2, 2)
    assert speed.ratio() is None
    assert speed.verdict() == "target met at the start"


def test_only_pairs_are_compared():
    """A seed that one arm alone has changes nothing."""
    rows = [_straight(0.05), _straight(0.06)], [_straight(0.1), _straight(0.12)]
    results = _study(*rows)
    more = Results.of(
        [*(r.record for r in results.runs), _record("b", 9, _straight(0.2)), _record("a", 8, [0.0] * 5)]
    )
    assert more.speeds(40, [0.1])[-1].ratio() == results.speeds(40, [0.1])[-1].ratio()
    assert more.difference(more.values("b", 40), more.values("a", 40)).pairs == 2
    assert more.area("b", 40) == results.area("b", 40)


def test_differences_are_paired_and_point_to_the_better():
    results = _study([[0.0, 0.5], [0.0, 0.7], [0.0, 0.6]], [[0.0, 0.6], [0.0, 0.8], [0.0, 0.7]])
    found = results.difference(results.values("b", 40), results.values("a", 40))
    assert found.estimate.value == pytest.approx(0.1)
    assert found.estimate.low == pytest.approx(0.1)  # no spread of the differences, whatever that of the values
    assert found.verdict("better", "worse") == "better (indication)"
    fallen = _study([[1.0, 0.5]] * 5, [[1.0, 0.6], [1.0, 0.61]] * 2 + [[1.0, 0.6]], key="nats_per_token")
    assert fallen.difference(fallen.values("b", 40), fallen.values("a", 40)).verdict("better", "worse") == "worse"
    assert results.difference({}, {1: 0.5}) is None


def test_area_is_the_mean_difference_over_the_steps():
    results = _study([[0.0, 0.0, 0.0]], [[0.0, 0.2, 0.4]])
    assert results.area("b", 40).estimate.value == pytest.approx(0.2)


def test_matched_horizons_pair_an_arm_with_larger_budgets_of_the_control():
    ends = {("a", 20): 0.4, ("a", 40): 0.6, ("b", 20): 0.7, ("b", 40): 0.8}
    results = Results.of(
        [_record(arm, seed, [0.0, end + 0.01 * seed], steps=n) for (arm, n), end in ends.items() for seed in (1, 2)]
    )
    found = {(m.steps, m.control_steps): m for m in results.matched()}
    assert set(found) == {(20, 20), (20, 40), (40, 40)}
    assert found[20, 40].ratio == 2
    assert found[20, 40].difference.estimate.value == pytest.approx(0.1)
    assert found[20, 40].difference.sign == 1


def test_targets_are_none_that_runs_begin_with_or_that_nobody_holds():
    assert _study([_straight(0.1)], [_straight(0.24)]).targets(40) == [0.25, 0.5, 0.7]  # .9 is met at the end alone
    assert _study([[0.6, 0.7, 0.8, 0.8]], [[0.6, 0.7, 0.8, 0.8]]).targets(40) == [0.7, 0.8]
    assert _study([[0.0, 0.0]], [[0.0, 0.1]]).targets(40) == []


def test_targets_of_a_loss_are_levels_that_every_run_of_the_control_held():
    """Of one run 2.5 at the first pair of evaluations, then 2.0, 1.9 and 1.8; of the other .1 more."""
    falling = [3.0, 2.5, 2.0, 1.9, 1.8, 1.8]
    others = [[x + 0.1 for x in falling], [x - 0.5 * (i > 0) for i, x in enumerate(falling)]]
    results = _study([falling, others[0]], others[1:], key="nats_per_token")
    assert results.targets(40) == pytest.approx([2.6, 2.1, 2.0, 1.9])
    assert results.runs[0].held(NATS) == [3.0, 2.5, 2.0, 1.9, 1.8]
    assert _run(0.0, 0.6, 0.4, 0.6, 0.7).held(SOLVED) == [0.0, 0.4, 0.4, 0.6]
    for speed in results.speeds(40):
        assert speed.arm != "a" or speed.reached == (2, 2)


def test_targets_lie_further_apart_than_evaluations_are_sure():
    rows = [_straight(0.25)], [_straight(0.25)]
    narrow, wide = (_study(*rows, width=width).targets(40) for width in (0.01, 0.22))
    assert narrow == [0.25, 0.5, 0.7]
    assert wide == [0.25, 0.7]  # from the hardest down


def test_targets_lie_further_apart_than_seeds_agree():
    """Four seeds .04 apart: the mean's interval is 2 t(3) .04 sqrt(5 / 3) / sqrt(4) = .16 wide at each step.

    Then levels .15 apart are one; of two seeds alone the interval would say nothing.
    """
    curve = [0.0, 0.3, 0.6, 0.75, 0.8, 0.8]
    spread = [[0.0, *(x + 0.04 * (i - 1.5) for x in curve[1:])] for i in range(4)]
    assert _study([curve] * 4, [curve] * 4).targets(40) == [0.25, 0.5, 0.7, 0.8]
    assert _study(spread, spread).targets(40) == [0.25, 0.5, 0.8]
    assert 0.7 in _study(spread[:2], spread[:2]).targets(40)


def test_one_pair_has_no_interval_and_speaks_for_nobody():
    found = Paired(mean_of([0.3]), 1)
    assert (found.estimate.low, found.estimate.high) == (-math.inf, math.inf)
    assert found.sign == 0


def test_deviation_has_the_chi_square_interval():
    """The textbook's: n = 5, s = sqrt(2.5) of 1..5."""
    found = deviation_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == pytest.approx(math.sqrt(2.5))
    assert found.low == pytest.approx(math.sqrt(4 * 2.5 / 11.1433), rel=1e-4)
    assert found.high == pytest.approx(math.sqrt(4 * 2.5 / 0.484419), rel=1e-4)
    with pytest.raises(ValueError, match="needs at least 2 values, got 1"):
        deviation_of([1.0])
    with pytest.raises(ValueError, match="no value to average"):
        mean_of([])


def test_the_interval_of_a_mean_covers_it_in_95_of_100_studies():
    values = scipy.stats.norm(0.1, 0.3).rvs((2000, 5), random_state=0)
    found = [mean_of(row) for row in values.tolist()]
    assert 0.935 < sum(e.low <= 0.1 <= e.high for e in found) / len(found) < 0.965


def test_the_measure_is_what_all_evaluations_have():
    both = [_record("a", 1, [0.1, 0.2]), _record("b", 1, [0.1, 0.2])]
    for record in both:
        record["curve"] = [point | {"loss": 2.0, "own": 1.0} for point in record["curve"]]
    assert Results.of(both).measure == SOLVED
    assert Results.of(both, "loss").measure == LOSS
    assert Results.of(both, "own").measure == Measure("own", "own (less is better)")
    with pytest.raises(ValueError, match=r"no evaluation has 'owm'; did you mean 'own'.*Known: loss, own, solved$"):
        Results.of(both, "owm")
    with pytest.raises(ValueError, match="have none of solved, nats_per_token, loss"):
        Results.of([_record("a", 1, [0.1, 0.2], key="x")])
    with pytest.raises(ValueError, match="runs of b have no evaluation"):
        Results.of([both[0], both[1] | {"curve": []}])


def test_levels_of_a_measure_that_rises_and_is_no_share_are_the_control_s():
    worse, better = [10.0, 20.0, 30.0, 40.0, 50.0], [10.0, 40.0, 50.0, 60.0, 70.0]
    records = [_record(arm, s, v, key="own") for arm, v in (("a", worse), ("b", better)) for s in range(5)]
    results = replace(Results.of(records, "own"), measure=Measure("own", "own", rises=True))
    assert results.targets(40) == [20.0, 30.0, 40.0]
    assert {speed.verdict() for speed in results.speeds(40) if speed.arm == "b"} == {"faster"}


def test_records_are_read_by_role(tmp_path):
    lines = [_record("a", 1, [0.1, 0.2]), _record("a", 2, [0.1, 0.2], role="screen")]
    (tmp_path / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_records(tmp_path) == lines
    assert read_records(tmp_path / RECORDS, "screen") == lines[1:]
    lacking = json.dumps({key: value for key, value in lines[0].items() if key != "study"})
    for text in ("nope", '{"arm": 1}', "[1]", lacking):
        (tmp_path / RECORDS).write_text(text)
        with pytest.raises(ValueError, match="holds no records of a study"):
            read_records(tmp_path)
    with pytest.raises(ValueError, match="no run is whole"):
        Results.of([])
    with pytest.raises(ValueError, match="records of one study"):
        Results.of([lines[0], lines[0] | {"study": "other"}])


@pytest.mark.parametrize("seldom", [2, 4])
def test_how_often_an_arm_is_evaluated_makes_it_neither_faster_nor_slower(seldom):
    """Both follow one convex curve; only evaluations that all runs have are compared."""
    fine = [1 - math.exp(-i / 5) for i in range(17)]
    records = [_record("a", seed, fine) for seed in range(3)] + [
        _record("b", seed, fine[::seldom]) for seed in range(3)
    ]
    results = Results.of(records)
    assert {len(run.curve) for run in results.runs} == {len(fine[::seldom])}
    speeds = results.speeds(40, [0.3, 0.6, 0.9])
    own, other = ([speed.costs for speed in speeds if speed.arm == arm] for arm in "ab")
    assert own == other
    assert [run.curve[-1]["solved"] for run in results.runs] == [fine[-1]] * 6


def test_a_run_keeps_its_last_evaluation_wherever_it_ends():
    runs = Results.of([_record("a", 0, _straight(0.1)), _record("b", 0, [0.0, 0.1, 0.3, 0.9])]).runs
    assert [[point["step"] for point in run.curve] for run in runs] == [[0, 40], [0, 40]]
    early = _record("b", 0, _straight(0.1))
    early["curve"] = early["curve"][:3]
    runs = Results.of([_record("a", 0, _straight(0.1)), early]).runs
    assert [[point["step"] for point in run.curve] for run in runs] == [[0, 10, 20, 40], [0, 10, 20]]

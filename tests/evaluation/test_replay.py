"""Advice held against the end of the same runs, on curves written by hand."""

from __future__ import annotations

import pytest

from unmask.evaluation.replay import comparisons_of, replay
from unmask.evaluation.results import Results


def _record(arm, seed, losses, solved, steps=40, width=0.0):
    every = steps / (len(losses) - 1)
    curve = [
        {"step": every * i, "seconds": i, "loss": loss, "solved": solved * i / (len(losses) - 1)}
        for i, loss in enumerate(losses)
    ]
    curve[-1] |= {"interval": [solved - width / 2, solved + width / 2]} if width else {}
    made = {"study": "s", "control": "a", "arm": arm, "seed": seed, "steps": steps, "role": "compare"}
    return made | {"curve": curve, "finals": {}}


def _runs(arm, early, solved, seeds=3, **options):
    return [_record(arm, s, [3.0, early + 0.01 * s, 1.0], solved + 0.01 * s, **options) for s in range(seeds)]


@pytest.mark.parametrize(("early", "right"), [(2.0, True), (2.8, False)])
def test_advice_is_right_where_the_early_leader_ends_best(early, right):
    """Early losses are 2.5 and `early`; b ends best, clear of the seeds' noise."""
    (one,) = comparisons_of(Results.of([*_runs("a", 2.5, 0.4), *_runs("b", early, 0.9)]))
    assert one.best == ("b", {"b"})
    for single, count in ((True, 3), (False, 1)):
        found = list(replay(one, 0.5, single=single))
        assert len(found) == count
        assert {(probe.is_best, probe.is_near) for probe in found} == {(right, right)}
        assert {probe.advice.sure for probe in found} == {not single}


def test_noise_of_one_seed_is_that_of_its_evaluations():
    for width, near in ((0.2, {"a", "b"}), (0.02, {"b"}), (0.0, {"b"})):
        records = [*_runs("a", 2.0, 0.8, seeds=1, width=width), *_runs("b", 2.5, 0.9, seeds=1, width=width)]
        (one,) = comparisons_of(Results.of(records))
        assert one.best == ("b", near)
        (probe,) = replay(one, 0.5, single=True)
        assert (probe.is_best, probe.is_near) == (False, "a" in near)
        assert list(replay(one, 0.5, single=False)) == []  # nothing that all seeds would add


@pytest.mark.parametrize(("own", "best", "near"), [(0.16, 0.14, True), (0.14, 0.16, True), (0.12, 0.12, False)])
def test_noise_of_two_evaluations_adds_up_in_squares(own, best, near):
    """Of ends .1 apart no interval reaches the other end by itself; together .16 and .14 do, and twice .12 do not."""
    records = [*_runs("a", 2.0, 0.8, seeds=1, width=own), *_runs("b", 2.5, 0.9, seeds=1, width=best)]
    (one,) = comparisons_of(Results.of(records))
    assert one.best == ("b", {"a", "b"} if near else {"b"})


def test_arms_of_other_seeds_and_lone_arms_are_left_out():
    runs = [*_runs("a", 2.0, 0.8), *_runs("b", 2.5, 0.9, seeds=2), *_runs("c", 2.5, 0.9)]
    runs += _runs("b", 2.0, 0.8, steps=80)
    (one,) = comparisons_of(Results.of(runs))
    assert (one.steps, list(one.arms), one.seeds) == (40, ["a", "c"], [0, 1, 2])
    assert comparisons_of(Results.of(_runs("a", 2.0, 0.8))) == []

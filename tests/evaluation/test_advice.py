"""The rule of `unmask advise`: whom it tells apart, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.evaluation.advice import advise_by


def _drawn(seed, means, seeds=2, rows=30, noise=1.0, training=0.0) -> dict[str, np.ndarray]:
    """Scores with noise that arms share by row, noise of their own, and what all rows of one run share."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(1, rows))
    found = {f"arm-{i}": mean + shared + noise * random.normal(size=(seeds, rows)) for i, mean in enumerate(means)}
    runs = training * np.random.default_rng([seed, 1]).normal(size=(len(means), seeds, 1))
    return {name: values + run for (name, values), run in zip(found.items(), runs, strict=True)}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-1, 1), min_size=2, max_size=5), st.randoms())
def test_the_order_of_arms_changes_nothing(seed, means, random):
    scores = _drawn(seed, means)
    names = list(scores)
    random.shuffle(names)
    assert advise_by({name: scores[name] for name in names}) == advise_by(scores)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 3), st.sampled_from([1, 2, 40]))
def test_identical_arms_never_have_a_winner(seed, arms, seeds, rows):
    one = np.random.default_rng(seed).normal(size=(seeds, rows))
    found = advise_by({f"arm-{i}": one for i in range(arms)})
    assert not found.sure
    assert found.first == "arm-0"
    assert len(found.tied) == arms - 1
    assert found.verdict.startswith("Not distinguishable")


def test_a_clear_difference_is_told_and_a_small_one_is_not():
    found = advise_by(_drawn(0, [0.0, 2.0, 0.02, 3.0], rows=60, noise=0.3))
    assert found.first == "arm-0"
    assert [gap.arm for gap in found.gaps] == ["arm-2", "arm-1", "arm-3"]
    assert found.tied == ("arm-2",)
    assert found.verdict == "Try arm-0 first, but it is not distinguishable from arm-2."
    clear = advise_by(_drawn(0, [0.0, 2.0], rows=60, noise=0.3))
    assert (clear.sure, clear.verdict) == (True, "Try arm-0 first.")
    assert (clear.seeds, clear.pairs) == (2, 60)


def test_seeds_that_disagree_make_nobody_sure():
    """The interval would tell: in five seeds the arm is far ahead in every row, in the sixth a little behind."""
    rows = np.zeros(50)
    other = np.random.default_rng(0).normal(scale=0.01, size=50)
    scores = {"a": [rows] * 6, "b": [rows + 1.0 + other] * 5 + [rows - 0.1 + other]}
    found = advise_by(scores)
    assert found.gaps[0].behind.low > 0
    assert not found.sure


def test_seeds_are_the_pairs_where_rows_are_not_known():
    close = {"a": [[1.0], [1.1], [1.2]], "b": [[1.5], [1.61], [1.69]]}
    assert advise_by(close).sure
    assert advise_by(close).pairs == 3


def test_one_seed_makes_nobody_sure():
    scores = _drawn(0, [0.0, 2.0], seeds=1, rows=60, noise=0.3)
    found = advise_by(scores)
    assert found.gaps[0].behind.low > 1
    assert not found.sure
    assert not advise_by({name: [[score]] for name, score in (("a", 1.0), ("b", 9.0))}).sure


@pytest.mark.parametrize("training", [0.0, 0.3, 3.0])
@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (2, 3), (5, 2)])
def test_a_winner_among_equals_is_rare(arms, seeds, training):
    """The level is of all differences together, over rows and runs: of arms that differ by noise alone one is told
    from another in few of the cases, whatever part of the noise all rows of a run share."""
    drawn = (_drawn(seed, [0.0] * arms, seeds, training=training) for seed in range(400))
    assert sum(len(found.tied) < arms - 1 for found in map(advise_by, drawn)) <= 28  # 20 and two deviations


def test_the_interval_covers_the_difference_of_arms_whose_runs_vary():
    """Of two arms each interval is of 95%."""
    drawn = (advise_by(_drawn(seed, [0.0, 5.0], 3, training=0.3)).gaps[0].behind for seed in range(400))
    assert 0.93 * 400 < sum(gap.low < 5 < gap.high for gap in drawn) <= 400


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": [[1.0]]}, "at least two arms, got a"),
        ({}, "at least two arms, got none"),
        ({"a": [[1.0, 2.0]], "b": [[1.0]]}, r"alike for all arms, got a \[1, 2\], b \[1, 1\]"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, r"scores are \[seeds, rows\]"),
        ({"a": [[1.0, 2.0]], "b": [[1.0, float("nan")]]}, "scores of b are not finite"),
    ],
)
def test_scores_that_do_not_compare_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        advise_by(scores)

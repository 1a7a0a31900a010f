import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask import Blockwise, IndependentMasking, ProgressiveUnmasking, Ramp
from unmask.config import from_json, to_json
from unmask.schedules import check_schedule, corners, doubling, integer_at, parse_schedule, value_at

values = st.integers(-50, 50) | st.floats(-50, 50)
ramps = st.builds(Ramp, values, values, st.integers(1, 40), st.integers(0, 40))
steps_of = st.lists(st.integers(1, 60), max_size=4, unique=True).map(lambda s: [0, *sorted(s)])
tables = steps_of.flatmap(
    lambda steps: st.lists(values, min_size=len(steps), max_size=len(steps)).map(
        lambda chosen: tuple(zip(steps, chosen, strict=True))
    )
)
schedules = values | ramps | tables


@given(values, st.integers(0, 10**9))
def test_a_number_holds_for_ever(value, step):
    assert value_at(value, step) == value


@given(tables)
def test_each_value_of_a_table_holds_from_its_step_until_the_next(table):
    ends = [step for step, _ in table[1:]] + [table[-1][0] + 7]
    for (since, value), end in zip(table, ends, strict=True):
        assert all(value_at(table, step) == value for step in range(since, end))


@given(ramps)
def test_a_ramp_is_linear_between_its_ends_and_constant_outside(ramp):
    assert all(value_at(ramp, step) == ramp.start for step in range(ramp.after + 1))
    last = ramp.after + ramp.steps
    assert value_at(ramp, last) == value_at(ramp, last + 1000) == ramp.end
    moves = [value_at(ramp, s + 1) - value_at(ramp, s) for s in range(ramp.after, last)]
    assert moves == pytest.approx([(ramp.end - ramp.start) / ramp.steps] * ramp.steps, abs=1e-9)


@given(last=st.integers(1, 200), every=st.integers(1, 50))
def test_sizes_double_from_one_up_to_the_last(last, every):
    schedule = doubling(last, every)
    steps, sizes = zip(*schedule, strict=True)
    assert steps == tuple(every * k for k in range(len(sizes)))
    assert sizes[:-1] == tuple(2**k for k in range(len(sizes) - 1))
    assert sizes[-1] == last
    assert len(sizes) == 1 or sizes[-2] < last <= 2 * sizes[-2]
    Blockwise(IndependentMasking(), schedule)
    with pytest.raises(ValueError, match="at least 1"):
        doubling(0, every)


@given(schedules, st.integers(0, 100))
def test_every_value_lies_between_the_corners_and_rounds_to_the_nearest_integer(schedule, step):
    value = value_at(schedule, step)
    assert min(corners(schedule)) - 1e-9 <= value <= max(corners(schedule)) + 1e-9
    assert abs(integer_at(schedule, step) - value) <= 0.5


@given(schedules)
def test_a_schedule_reads_back_from_its_print_and_from_json(schedule):
    assert parse_schedule(repr(schedule)) == schedule
    assert from_json(json.loads(json.dumps(to_json(schedule)))) == schedule


@pytest.mark.parametrize("text", ["", "fast", "Ramp(1)", "Ramp(1, 2, 3", "__import__('os')", "Bell()"])
def test_other_text_is_no_schedule(text):
    with pytest.raises(ValueError, match="Ramp"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((), "a schedule is a tuple of"),
        ((4, 8), "a schedule is a tuple of"),
        (((0, 4, 1),), "a schedule is a tuple of"),
        (((0.0, 4),), "a schedule is a tuple of"),
        (((1, 4),), "begin at 0"),
        (((0, 4), (5, 6), (5, 8)), "increase"),
        (((0, 4), (5, 0)), "a positive integer, got 0"),
        (((0, 4), (5, 2.5)), "a positive integer, got 2.5"),
        (Ramp(4, 0, 10), "a positive integer, got 0"),
        (Ramp(4, 7.5, 10), "a positive integer, got 7.5"),
        ([(0, 4)], "or a Ramp"),
        ("8", "or a Ramp"),
        (None, "or a Ramp"),
        (float("nan"), "or a Ramp"),
        (True, "or a Ramp"),
    ],
)
def test_what_is_no_schedule_of_stages_is_refused_with_the_reason(schedule, message):
    with pytest.raises(ValueError, match=f"stages.*{message}"):
        ProgressiveUnmasking(stages=schedule)


@pytest.mark.parametrize("options", [(0, 1, 0), (0, 1, 1.0), (0, 1, 5, -1), (float("inf"), 1, 5), ("0", 1, 5)])
def test_impossible_ramps_are_refused(options):
    with pytest.raises(TypeError if "0" in options else ValueError, match="Ramp"):
        Ramp(*options)


@given(schedules)
def test_a_checked_schedule_never_takes_a_value_that_is_not_allowed(schedule):
    if all(-5 <= corner <= 9 for corner in corners(schedule)):
        check_schedule("x", schedule, lambda value: -5 <= value <= 9, "in [-5, 9]")
        assert all(-5 - 1e-9 <= value_at(schedule, step) <= 9 + 1e-9 for step in range(120))
    else:
        with pytest.raises(ValueError, match=r"x must be in \[-5, 9\], got"):
            check_schedule("x", schedule, lambda value: -5 <= value <= 9, "in [-5, 9]")


def test_configs_with_schedules_round_trip():
    config = Blockwise(ProgressiveUnmasking(stages=((0, 12), (30, 15))), size=Ramp(1, 64, 500, after=20))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config

"""Schedules: a setting that changes with the training step.

A schedule is a plain number; a tuple of (step, value) pairs, each value holding from its step on; or a `Ramp`.
It is a pure function of the step, so a resumed run needs nothing but its step number.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unmask.config import ours, parse, positive_int, require
from unmask.kinds import fits


@dataclass(frozen=True)
class Ramp:
    """A value that moves linearly from `start` to `end`, and is constant before and after.

    Attributes:
        start: value up to step `after`.
        end: value from step `after + steps` on.
        steps: length of the move, at least 1.
        after: step at which it begins.
    """

    start: float
    end: float
    steps: int
    after: int = 0

    def __post_init__(self) -> None:
        positive_int("Ramp: steps", self.steps)
        positive_int("Ramp: after", self.after, least=0)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        done = max(step - self.after, 0)
        # At the end itself the sum may be off by a rounding, and fall outside what was allowed.
        return self.end if done >= self.steps else self.start + (self.end - self.start) * done / self.steps


Schedule = int | float | tuple[tuple[int, float], ...] | Ramp


def doubling(last: int, every: int) -> Schedule:
    """1, 2, 4, ... up to `last`, each for `every` steps: the block sizes by which an autoregressive model becomes one
    of blocks (NBDiff, LLaDA2), as in `Blockwise(..., size=doubling(32, every=1000))`.

    Raises:
        ValueError: for a last value or a number of steps below 1.
    """
    require(last >= 1 and every >= 1, f"doubling needs a last value and steps of at least 1, got {last} and {every}")
    values = [2**k for k in range((last - 1).bit_length())] + [last]
    return tuple((k * every, value) for k, value in enumerate(values))


def value_at(schedule: Schedule, step: int) -> float:
    """The schedule's value at step 0, 1, ..."""
    if isinstance(schedule, Ramp):
        return schedule(step)
    if isinstance(schedule, tuple):
        return next(value for since, value in reversed(schedule) if since <= step)
    return schedule


def integer_at(schedule: Schedule, step: int) -> int:
    """The value at `step` of a schedule of whole numbers, rounded to the nearest (halves up)."""
    return math.floor(value_at(schedule, step) + 0.5)


def corners(schedule: Schedule) -> tuple[float, ...]:
    """The values that a schedule names; all others that it takes lie between them."""
    if isinstance(schedule, Ramp):
        return schedule.start, schedule.end
    return tuple(value for _, value in schedule) if isinstance(schedule, tuple) else (schedule,)


def parse_schedule(text: str) -> Schedule:
    """Read a schedule from the text it prints as, e.g. "8", "((0, 4), (500, 8))" or "Ramp(4, 8, 500)".

    Raises:
        ValueError: for anything else.
    """
    try:
        value = parse(text, object) if text.strip().startswith("Ramp(") else ast.literal_eval(text.strip())
        if isinstance(value, (int, float, tuple, Ramp)):
            return value
        why = f"it is a {type(value).__name__}"
    except (SyntaxError, ValueError, TypeError) as error:
        why = str(error)
    raise ValueError(
        f"cannot read {text!r} as a schedule: {why}; write a number, ((step, value), ...) or Ramp(start, end, steps)"
    )


def check_schedule(
    name: str, schedule: Schedule, allowed: Callable[[float], bool], what: str, *, whole: bool = False
) -> None:
    """Refuse what is no schedule, or takes a value that is not allowed.

    Args:
        name: of the setting, for the message.
        schedule: to check.
        allowed: tells whether a value is allowed; the allowed values must form an interval.
        what: the allowed values in words, e.g. "a share in [0, 1]".
        whole: whether the values it names must be integers.

    Raises:
        ValueError: saying which value is wrong and what would be right.
    """
    if isinstance(schedule, tuple):
        pairs = len(schedule) > 0 and all(isinstance(p, tuple) and fits(p, tuple[int, Any]) for p in schedule)
        require(
            pairs, f"{name}: a schedule is a tuple of (step, value) pairs, e.g. ((0, 4), (500, 8)); got {schedule!r}"
        )
        steps = [step for step, _ in schedule]
        require(
            steps[0] == 0 and all(a < b for a, b in itertools.pairwise(steps)),
            f"{name}: the steps of a schedule must begin at 0 and increase, got {steps}",
        )
    elif not isinstance(schedule, Ramp) and not fits(schedule, float):
        raise ValueError(f"{name} must be {what}, a tuple of (step, value) pairs or a Ramp; got {schedule!r}")
    for value in corners(schedule):
        known = fits(value, int if whole else float)
        require(known and allowed(value), f"{name} must be {what}, got {value!r}")


ours(Ramp)

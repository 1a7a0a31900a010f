"""The live display of training runs: for each a bar with loss, solved share, speed and remaining time."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from unmask.training.console import standard_error

LINE_SECONDS = 30.0
"""Where there is no terminal: seconds from one line about a run's steps to the next."""


class Display:
    """A context that shows runs. On a terminal it is live; elsewhere it prints a line for each evaluation, and every
    `LINE_SECONDS`.

    Args:
        console: where to; by default standard error.
        visible: False shows nothing (all ranks but the first).
    """

    def __init__(self, console: Console | None = None, visible: bool = True) -> None:
        self.console, self.visible = console or standard_error(), visible
        self.bars = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (visible and self.console.is_terminal),
            refresh_per_second=4,
        )

    def say(self, text: str) -> None:
        """Print a line above the bars, as it is written."""
        self.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


def shown_of(results: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation that a display has room for."""
    return {name: value for name, value in results.items() if name in ("solved", "loss")}


class TrainingProgress:
    """One run on a display.

    Args:
        display: where it is shown.
        name: of the run.
        steps: in total.
        done: steps done before (a resumed run).
    """

    def __init__(self, display: Display, name: str, steps: int, done: int = 0) -> None:
        self.display, self.name, self.steps = display, name, steps
        self._began, self._first = time.perf_counter(), done
        self.done, self._said = done, self._began
        self._text: dict[str, str] = {}
        self._task = display.bars.add_task(name, total=steps, completed=done, text="")

    def step(self, step: int, **shown: float) -> None:
        """Show that `step` steps are done, with numbers under their names."""
        self.done = step
        self._text |= {name: f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items()}
        self.display.bars.update(self._task, completed=step, text=self._line(step))
        if time.perf_counter() - self._said >= LINE_SECONDS:
            self._print(step)

    def close(self) -> None:
        """Take its bar away."""
        self.display.bars.remove_task(self._task)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        if self.display.visible:
            self.display.say(f"{self.name}: {text}")

    def evaluated(self, step: int, **shown: float) -> None:
        """Show the figures of an evaluation."""
        self._said = math.inf  # this line is said whenever it comes
        self.step(step, **shown)
        self._print(step)

    def _print(self, step: int) -> None:
        """Say how far it is, where there is no terminal to show it."""
        self._said = time.perf_counter()
        if self.display.visible and not self.display.console.is_terminal:
            left = _left(self.steps - step, step - self._first, time.perf_counter() - self._began)
            line = f"{self.name} step {step}/{self.steps} {self._line(step)}{left}"
            self.display.say(line)

    def _line(self, step: int) -> str:
        seconds = time.perf_counter() - self._began
        speed = (step - self._first) / seconds if seconds > 0 else 0.0
        return "  ".join([*self._text.values(), f"{speed:.1f} steps/s"])


class StudyProgress:
    """Many runs on a display: a bar over all their steps, and a line for each run that ends.

    Args:
        display: where it is shown.
        steps: of each run by its name, those that are left.
    """

    def __init__(self, display: Display, steps: dict[str, int]) -> None:
        self.display, self.steps = display, steps
        self._done = dict.fromkeys(steps, 0)
        self._ended = 0
        self._began = time.perf_counter()
        self._task = display.bars.add_task("all", total=sum(steps.values()), text=f"0 of {len(steps)} runs")

    def trained(self, name: str, steps: int) -> None:
        """Show that a run has done so many of its steps."""
        self._done[name] = steps
        self.display.bars.update(self._task, completed=sum(self._done.values()))

    def ended(self, name: str, result: str) -> None:
        """Show how a run ended, and how long the others will take at the speed so far."""
        trained, seconds = sum(self._done.values()), time.perf_counter() - self._began
        self.trained(name, self.steps[name])
        self._ended += 1
        count = f"{self._ended} of {len(self.steps)} runs"
        self.display.bars.update(self._task, text=count)
        left = sum(self.steps.values()) - sum(self._done.values())
        self.display.say(f"{name}: {result}  ({count}{_left(left, trained, seconds)})")


def _left(steps: int, done: int, seconds: float) -> str:
    """How long so many steps will take at the speed of those that are done, in words; empty where nobody knows."""
    return f", about {_duration(steps * seconds / done)} left" if done and steps else ""


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"

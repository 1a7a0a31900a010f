"""The live display of a training run: a bar with loss, solved share, speed and remaining time."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A context that shows one run. On a terminal it is live; elsewhere it prints a line for each evaluation.

    Args:
        name: of the run.
        steps: in total.
        done: steps done before (a resumed run).
        visible: False shows nothing (all ranks but the first).
        console: where to; by default standard error.
    """

    def __init__(
        self, name: str, steps: int, done: int = 0, visible: bool = True, console: Console | None = None
    ) -> None:
        self.name, self.steps, self.visible = name, steps, visible
        self.console = console or Console(stderr=True)
        self._began, self._first = time.perf_counter(), done
        self._text: dict[str, str] = {}
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (visible and self.console.is_terminal),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, text="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, **shown: float) -> None:
        """Show that `step` steps are done, with numbers under their names."""
        self._show(shown)
        self._bar.update(self._task, completed=step, text=self._line(step))

    def evaluated(self, step: int, **shown: float) -> None:
        """Show the figures of an evaluation."""
        self.step(step, **shown)
        if self.visible and not self.console.is_terminal:
            self.console.print(f"{self.name} step {step}/{self.steps} {self._line(step)}", highlight=False)

    def _show(self, shown: dict[str, float]) -> None:
        self._text |= {name: f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items()}

    def _line(self, step: int) -> str:
        seconds = time.perf_counter() - self._began
        speed = (step - self._first) / seconds if seconds > 0 else 0.0
        return "  ".join([*self._text.values(), f"{speed:.1f} steps/s"])

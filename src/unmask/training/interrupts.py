"""Ctrl-C and SIGTERM during training: the step at hand is finished and saved, and the process ends as it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context that notes the first signal, and lets a second one end the process at once.

    Outside the main thread, where Python handles no signals, it notes none.

    Args:
        noted: called with a line for people when the first signal comes.
    """

    def __init__(self, noted: Callable[[str], None]) -> None:
        self.noted = noted
        self.signal = 0
        """Number of the signal that came, 0 before one does."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            end(number, "")
        self.signal = number
        self.noted("stopping once this step is done and saved; once more to stop at once")


def end(number: int, message: str) -> NoReturn:
    """Raise what a signal ends a process by: KeyboardInterrupt (exit code 130), or SystemExit of 128 + its number.

    Args:
        number: of the signal.
        message: what is left, for people.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)

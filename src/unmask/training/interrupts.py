"""Ctrl-C, SIGTERM or a closed terminal during training: the step at hand is saved, and the process ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP, and knows of no terminal that goes."""
APART = 2.0
"""Seconds within which signals are one: a terminal and a scheduler tell every process of a job, and whoever has
started one tells it once more."""
SAID_WITHIN = 5.0
"""Seconds that an end waits for what is being said, which may wait for its reader."""


class Interrupts:
    """A context that notes the first signal, and lets a second one, `APART` later, end the process at once.

    Outside the main thread, where Python handles no signals, it notes none.

    A signal comes into the midst of anything, an import or a half-written line too. So what handles it does no more
    than to note it, and a thread that waits for that does the talking.

    Args:
        noted: called in a thread, with a line for people, when the first signal comes.
        until: what is done before the end, for that line.
    """

    def __init__(self, noted: Callable[[str], None], until: str = "this step is done and saved") -> None:
        self.noted, self.until = noted, until
        self.signal = 0
        """Number of the signal that came, 0 before one does."""
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._speaker: threading.Thread | None = None
        self._over = threading.Event()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._speaker = threading.Thread(target=self._speak, name="unmask-interrupts", daemon=True)
            self._speaker.start()
            heard = [
                number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
            ]  # nohup ignores one
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._speaker is not None:
            self._over.set()  # in the main thread the handler alone set it before, and is gone: they never meet
            self._speaker.join(SAID_WITHIN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
            self._over.set()
        elif now - self._since > APART:
            end(number, "")

    def _speak(self) -> None:
        self._over.wait()
        if self.signal:
            self.noted(f"stopping once {self.until}; once more to stop at once")


def end(number: int, message: str) -> NoReturn:
    """Raise what a signal ends a process by: KeyboardInterrupt (exit code 130), or SystemExit of 128 + its number.

    Args:
        number: of the signal.
        message: what is left, for people.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)

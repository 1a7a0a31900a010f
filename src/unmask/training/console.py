"""What a process says to people: on standard error, which nobody may be reading, and warnings as lines of it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from rich.console import Console
from rich.markup import escape


class Heard:
    """A text file whose other end may go away: the reader of a pipe (`| head`, or `| tee` at Ctrl-C), a terminal.

    Args:
        file: what is written to, as long as that can be done.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write, or lose, the text."""
        try:
            self._file.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Bring to its reader, or lose, what was written."""
        try:
            self._file.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """Where nobody will ever read it, the whole process says it to nobody from now on."""
        if error.errno in (errno.EPIPE, errno.EIO):
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._file.fileno())


def standard_error(**options: Any) -> Console:
    """A console on standard error that no run ends by; `options` are those of rich."""
    return Console(file=cast(Any, Heard(sys.stderr)), **options)


@contextmanager
def told_as_lines() -> Iterator[None]:
    """A context in which every warning, ours or a library's, is one line on standard error, and told once.

    For programs of the library's own: from Python warnings stay what they are, to be caught and filtered.
    """
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *_: Any) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            standard_error(soft_wrap=True).print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False)

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield

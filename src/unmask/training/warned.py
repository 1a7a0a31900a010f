"""Warnings as lines for people: what is said, without the file and the source line that say it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape

from unmask.training.heard import standard_error


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

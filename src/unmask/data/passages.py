"""Long documents in passages, so that a part of one file or of a few can be held out."""

from __future__ import annotations

import re

SIZE = 2000
"""Most characters of a passage."""

_PASSAGE = re.compile(rf"\S(?:.{{0,{SIZE - 1}}}(?=\s|$)|\S{{0,{SIZE - 1}}})", re.DOTALL)


def passages(text: str) -> list[str]:
    """Divide a text into passages of at most `SIZE` characters, at white space; only that between them is lost."""
    return _PASSAGE.findall(text)

"""Files that are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a crash or a full disk leaves what was there before.

    Several may write it at once: readers find what one of them wrote.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)

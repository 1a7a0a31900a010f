"""Where files lie that a config names: a path that was typed in one folder is found again from another."""

from __future__ import annotations

from pathlib import Path


def found_from(folder: Path, name: str) -> str:
    """A relative path as it is where something is there, or the one in `folder` where something is there instead.

    Args:
        folder: where the run was started.
        name: a path, a pattern or any other name, which stays as it is.
    """
    other = folder / name
    if Path(name).is_absolute() or _there(Path(name)) or not _there(other):
        return name
    return str(other)


def _there(path: Path) -> bool:
    return path.exists() or any(path.parent.glob(path.name)) if path.name else path.exists()

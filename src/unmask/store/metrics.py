"""metrics.jsonl: one JSON object a line, the record that tables, plots and reports are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.store.files import replace_text

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Append-only log. Opened for a resumed run, it forgets what came after the checkpoint's step.

    Args:
        folder: the run's folder.
        after: keep lines up to this step; -1 to start empty.
    """

    def __init__(self, folder: Path, after: int = -1) -> None:
        self.path = folder / FILE_NAME
        kept = [line for line in read_metrics(folder) if line["step"] <= after] if self.path.exists() else []
        replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line: `kind` is "start", "train", "time" or "evaluation", `step` the number of steps done."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        except OSError as error:
            if not self.path.parent.is_dir():
                raise OSError(f"the run's folder {self.path.parent} was deleted") from error
            raise OSError(
                f"could not write {self.path}: {error.strerror}. --resume goes on from the last checkpoint"
            ) from error


def read_metrics(folder: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Read a run's metrics, all or one kind. A last line cut short by a crash is left out.

    Raises:
        ValueError: for a folder without metrics, or a broken line in the middle, named by number.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {FILE_NAME}")
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a line of JSON") from None
    return [line for line in found if kind is None or line["kind"] == kind]


def logged(folder: str | Path, kind: str, step: int) -> bool:
    """Whether a run's metrics have a line of a kind at a step; ValueError as for `read_metrics`."""
    return any(line["step"] == step for line in read_metrics(folder, kind))

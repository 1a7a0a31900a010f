"""What the experiments share: records as JSON lines, paired differences over seeds, tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import scipy.stats


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a file, one line each."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def loop(steps: int, seed: int, warmup: float = 0.04) -> dict[str, Any]:
    """Settings of `TrainingConfig` that runs of one budget share: ten evaluations, one thread."""
    settings = {"steps": steps, "warmup_steps": round(warmup * steps), "evaluate_every": steps // 10}
    return {**settings, "seed": seed, "threads": 1, "tracker": "none"}


def read(path: Path) -> list[dict[str, Any]]:
    """Read what `append` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def paired(differences: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean of paired differences with its 95% t-interval; without an interval for one pair."""
    if not differences:
        return ""
    middle = scale * mean(differences)
    if len(differences) < 2:
        return f"{middle:+.{digits}f}"
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return f"{middle:+.{digits}f} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]

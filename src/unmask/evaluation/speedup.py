"""What accelerates training? Compare finished runs from their saved metrics alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.training.metrics import read_metrics

TARGETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Arm:
    """One run of a comparison.

    Attributes:
        name: of the run's folder.
        curve: evaluations in order, as logged: "step", "seconds", "tokens", "solved", ...
        config: the run's resolved config.
    """

    name: str
    curve: list[dict[str, Any]]
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Arm:
        """Read a run's folder.

        Raises:
            ValueError: where it holds no run, or no evaluation.
        """
        folder = Path(folder)
        curve = read_metrics(folder, "evaluation")
        if not curve:
            raise ValueError(f"{folder} has no evaluation in its metrics; train with evaluate_every")
        return cls(folder.name, curve, json.loads((folder / "config.json").read_text()))

    @property
    def final(self) -> dict[str, Any]:
        """The last evaluation."""
        return self.curve[-1]

    def reached(self, target: float, measure: str = "solved") -> dict[str, Any] | None:
        """The first evaluation at or above the target; None if there is none."""
        return next((point for point in self.curve if point[measure] >= target), None)

    @property
    def tokens_per_second(self) -> float:
        """Positions trained on for each second of training."""
        return self.final["tokens"] / max(1e-9, self.final["seconds"])


@dataclass(frozen=True)
class TargetRow:
    """When each arm reached a target, and how many times fewer steps and seconds than the first arm."""

    target: float
    steps: tuple[int | None, ...]
    seconds: tuple[float | None, ...]

    def ratio(self, arm: int, of: str = "steps") -> float | None:
        """The first arm's cost over this arm's: above 1, this arm is faster. None unless both got there."""
        costs = getattr(self, of)
        return costs[0] / costs[arm] if costs[0] and costs[arm] else None


def targets_reached(arms: list[Arm], targets: tuple[float, ...] = TARGETS) -> list[TargetRow]:
    """Compare at every target that at least one arm reached after its start, in ascending order.

    Steps are those of the first evaluation at or above the target, so they are known to within one
    evaluation interval.
    """
    rows = []
    for target in targets:
        points = [arm.reached(target) for arm in arms]
        if any(points) and not all(point and point["step"] == 0 for point in points):
            steps = tuple(None if p is None else int(p["step"]) for p in points)
            seconds = tuple(None if p is None else float(p["seconds"]) for p in points)
            rows.append(TargetRow(target, steps, seconds))
    return rows

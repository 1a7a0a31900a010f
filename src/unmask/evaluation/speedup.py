"""What accelerates training? Compare finished runs from their saved metrics alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.store.metrics import read_metrics

TARGETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Measure:
    """A number of every evaluation, by which runs are compared.

    Attributes:
        key: its name in the metrics; "interval" beside it is its 95% interval.
        label: what it is.
        rises: whether more is better.
        form: how it is written, as for `format`.
    """

    key: str
    label: str
    rises: bool
    form: str


MEASURES = (
    Measure("solved", "unseen puzzles solved", True, ".1%"),
    Measure("nats_per_token", "held-out negative ELBO, nats per token", False, ".3f"),
)


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

    @property
    def measure(self) -> Measure:
        """What its evaluations measured; ValueError if nothing that runs are compared by."""
        for measure in MEASURES:
            if measure.key in self.final:
                return measure
        raise ValueError(f"the evaluations of {self.name} have none of {', '.join(m.key for m in MEASURES)}")

    def reached(self, target: float) -> dict[str, Any] | None:
        """The first evaluation as good as the target or better; None if there is none."""
        key, sign = self.measure.key, 1 if self.measure.rises else -1
        return next((point for point in self.curve if sign * point[key] >= sign * target), None)

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


def targets_reached(arms: list[Arm], targets: tuple[float, ...] | None = None) -> list[TargetRow]:
    """Compare at every target that at least one arm reached after its start, the easiest first.

    Steps are those of the first evaluation at the target or better, so they are known to within one evaluation
    interval.

    Args:
        arms: to compare; all with the first one's measure.
        targets: by default fixed shares where the measure is one, else what the first arm had reached at a quarter,
            half, three quarters and the end of its evaluations.
    """
    rows = []
    for target in _targets(arms[0]) if targets is None else targets:
        points = [arm.reached(target) for arm in arms]
        if any(points) and not all(point and point["step"] == 0 for point in points):
            steps = tuple(None if p is None else int(p["step"]) for p in points)
            seconds = tuple(None if p is None else float(p["seconds"]) for p in points)
            rows.append(TargetRow(target, steps, seconds))
    return rows


def _targets(first: Arm) -> tuple[float, ...]:
    if first.measure.rises:
        return TARGETS
    last = len(first.curve) - 1
    values = {first.curve[round(last * part)][first.measure.key] for part in (0.25, 0.5, 0.75, 1.0)}
    return tuple(sorted(values, reverse=True))

"""A variance in parts, A (masks), B (rates) and C (rows): what `unmask.evaluation.variance` gives, and its file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.evaluation.estimate import Estimate
from unmask.store.files import replace_text

VARIANCE = Path("variance") / "variance.json"
"""In the folder of a run, a study or a probe."""


@dataclass(frozen=True)
class Decomposition:
    """Variance of a batch quantity times the number of forwards, so that batch sizes compare.

    Attributes:
        masks: A.
        rates: B.
        rows: C.
        total: of single draws, estimated apart from the parts.
        signal: squared length of the mean.
    """

    masks: Estimate
    rates: Estimate
    rows: Estimate
    total: Estimate
    signal: float

    @property
    def parts(self) -> float:
        """A + B + C; agrees with `total` within the intervals."""
        return self.masks.value + self.rates.value + self.rows.value

    @property
    def over_signal(self) -> float:
        """A + B + C over the squared mean: as many forwards in a batch make noise and signal alike.

        Of arms with other objectives, and so other means, this compares. NaN where the mean cannot be told from zero.
        """
        return self.parts / self.signal if self.signal > 0 else math.nan


def save_variance(path: Path, arms: dict[str, dict[str, Decomposition]], about: dict[str, Any]) -> None:
    """Write what was measured, and with which settings, as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "about": about,
        "arms": {name: {of: asdict(d) for of, d in parts.items()} for name, parts in arms.items()},
    }
    replace_text(path, json.dumps(record, indent=2) + "\n")


def load_variance(path: Path) -> dict[str, dict[str, Decomposition]]:
    """Read the arms that `save_variance` wrote; ValueError for another file."""
    try:
        saved = json.loads(path.read_text())["arms"]
        return {name: {of: _decomposition(**d) for of, d in parts.items()} for name, parts in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no variances: {error!r}") from None


def _decomposition(signal: float, **parts: dict[str, float]) -> Decomposition:
    return Decomposition(**{name: Estimate(**part) for name, part in parts.items()}, signal=signal)

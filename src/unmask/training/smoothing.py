"""A loss curve that a person can read: the part of its jumps that the drawn mask rates explain is taken out.

Bins of the mask rate keep a moving average of what a row there adds to the loss; the control variate is the mean of
these over the rates that were drawn, less its usual value (named EMA in arXiv 2511.18159). Averages are numbers: no
gradient runs through them, so subtracting them from a loss changes no gradient, only what is logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class SmoothLoss:
    """The loss less its control variate, from one logged step to the next.

    Args:
        memory: share of a moving average that is kept, in [0, 1); young averages are plain means.
        fitted: multiply the control variate by Cov / Var of loss and variate, as seen so far, in place of 1.
    """

    def __init__(self, memory: float = 0.95, fitted: bool = False) -> None:
        if not 0 <= memory < 1:
            raise ValueError(f"memory is a share in [0, 1), got {memory}")
        self.memory, self.fitted, self.steps = memory, fitted, 0
        self._usual: list[float] = []
        self._level: list[float] = []
        self._seen: list[int] = []
        self._loss = self._control = self._product = self._square = 0.0

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], step: int) -> SmoothLoss:
        """What a run had seen after `step` steps, from its training records: there is no other state."""
        smooth = cls()
        for record in records:
            parts = record.get("by_rate", {})
            if record["step"] <= step and "part" in parts:
                smooth.update(parts["rows"], parts["part"])
        return smooth

    def update(self, rows: Sequence[int], part: Sequence[float]) -> float:
        """Return the smooth loss of a step, and take the step in.

        Args:
            rows: drawn in each bin of the mask rate.
            part: what each bin adds to the loss; the loss is their sum.
        """
        if not self._usual:
            self._usual, self._level, self._seen = [0.0] * len(rows), [0.0] * len(rows), [0] * len(rows)
        total, loss = sum(rows), sum(part)
        if total == 0:
            return loss
        share = [n / total for n in rows]
        known = self.steps > 0
        control = sum((s - u) * level for s, u, level in zip(share, self._usual, self._level, strict=True)) * known
        smooth = loss - self.coefficient * control
        self.steps += 1
        keep = self._keep(self.steps)
        self._usual = [keep * u + (1 - keep) * s for u, s in zip(self._usual, share, strict=True)]
        for k, n in enumerate(rows):
            if n:
                self._seen[k] += 1
                keep_bin = self._keep(self._seen[k])
                self._level[k] = keep_bin * self._level[k] + (1 - keep_bin) * part[k] / share[k]
        self._loss = keep * self._loss + (1 - keep) * loss
        self._control = keep * self._control + (1 - keep) * control
        self._product = keep * self._product + (1 - keep) * (loss - self._loss) * (control - self._control)
        self._square = keep * self._square + (1 - keep) * (control - self._control) ** 2
        return smooth

    @property
    def coefficient(self) -> float:
        """1; or Cov / Var, once eight steps have been seen."""
        enough = self.fitted and self.steps >= 8 and self._square > 0
        return self._product / self._square if enough else 1.0

    def _keep(self, count: int) -> float:
        return min(self.memory, 1 - 1 / count)

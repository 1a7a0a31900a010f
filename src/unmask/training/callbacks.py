"""What a user adds to the loop: a callback is told of steps, evaluations and checkpoints, and may ask for two things.

A callback's `stop` ends the run after the step, `keep` names the step whose checkpoint is never deleted; where that
is the step at hand, its checkpoint is written. Its state is part of every checkpoint, so that a resumed run goes on
alike. Under several ranks each has its callbacks, told the same figures; what one asks for is done by all.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from unmask.config import nearest, positive_int, require


class Callback:
    """Base of the callbacks; by itself it does nothing."""

    stop: str | None = None
    """Why the run ends here, for people; None: it goes on."""
    keep: int | None = None
    """The step whose checkpoint is kept whatever comes later."""

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the figures of a step, while the next one is made; before anything is evaluated or saved."""

    def evaluation(self, step: int, results: dict[str, Any]) -> None:
        """Take what the evaluation after a step gave."""

    def checkpoint(self, step: int, folder: Path) -> None:
        """Take the folder of a checkpoint that has just been written."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of it, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


class _Watch(Callback):
    """Base of those that follow one figure of the evaluations.

    Args:
        figure: its name: "loss", "solved", ...
        rises: a higher one is better.
    """

    def __init__(self, figure: str = "loss", rises: bool = False) -> None:
        self.figure, self.rises = figure, rises
        self.best: float | None = None

    def improves(self, results: dict[str, Any], least: float = 0.0) -> bool:
        """Whether the figure is the best finite one so far, by more than `least`; if so, remember it."""
        if self.figure not in results:
            known = [name for name, value in results.items() if isinstance(value, (int, float))]
            raise ValueError(f"the evaluation gives no figure '{self.figure}'{nearest(self.figure, known)}")
        value = float(results[self.figure])
        if not math.isfinite(value):
            return False
        gain = 0.0 if self.best is None else (value - self.best) * (1 if self.rises else -1)
        if self.best is not None and not gain > least:
            return False
        self.best = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """All but its settings."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.best = state["best"]


class EarlyStopping(_Watch):
    """End the run once an evaluation's figure has not improved for several evaluations.

    Args:
        figure: its name in the evaluation's results.
        patience: evaluations without improvement that end the run.
        least: what counts as an improvement must be more than this.
        rises: a higher figure is better.
    """

    def __init__(self, figure: str = "loss", patience: int = 5, least: float = 0.0, rises: bool = False) -> None:
        super().__init__(figure, rises)
        positive_int("patience", patience)
        require(least >= 0, f"least must not be negative, got {least}")
        self.patience, self.least, self.waited = patience, least, 0

    def evaluation(self, step: int, results: dict[str, Any]) -> None:
        """Count the evaluations since the best one."""
        self.waited = 0 if self.improves(results, self.least) else self.waited + 1

    @property
    def stop(self) -> str | None:  # type: ignore[override]
        """Set after `patience` evaluations that were no better."""
        if self.waited < self.patience:
            return None
        missed = "been a number" if self.best is None else f"improved on {self.best:.4g}"
        return f"{self.figure} has not {missed} for {self.waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        """The best figure, and the evaluations since."""
        return super().state_dict() | {"waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.waited = state["waited"]


class BestCheckpoint(_Watch):
    """Keep the checkpoint at which an evaluation's figure was best; `keep` is its step.

    Args:
        figure: its name in the evaluation's results.
        rises: a higher figure is better.
    """

    def evaluation(self, step: int, results: dict[str, Any]) -> None:
        """Ask for a checkpoint of this step where it is the best so far; the start is none."""
        if step and self.improves(results):
            self.keep = step

    def state_dict(self) -> dict[str, Any]:
        """The best figure and its step."""
        return super().state_dict() | {"keep": self.keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.keep = state["keep"]

"""What is evaluated along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from unmask.config import positive_int
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.evaluation.trace import Example, example_of
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.sampling import Decoding


@dataclass(frozen=True)
class HeldOutLikelihood:
    """Negative ELBO of the held-out rows, under noise that is the same for every model and step."""

    samples: int = 2
    """Forwards of each row."""
    seed: int = 0
    """Of rates and masks."""
    batch_size: int = 64
    """Forwards at a time; changes no number."""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            positive_int(name, getattr(self, name))

    def start(self, held_out: Dataset) -> Callable[[MaskedDiffusionLM, bool], dict[str, Any]]:
        """Return the function that a `Trainer` calls as evaluate(model, last).

        It gives "nats_per_token" (and "loss", the same), "interval" over rows, and "rows".
        """
        config = LikelihoodConfig(samples=self.samples, seed=self.seed)

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            found = likelihood(model, held_out, config, batch_size=self.batch_size).nats_per_token
            value = {"nats_per_token": found.value, "loss": found.value}
            return {**value, "interval": (found.low, found.high), "rows": len(held_out)}

        return evaluate

    def example(self, held_out: Dataset) -> Example:
        """The held-out row with the most to unmask, drawn in a random order at temperature 1, in at most 64 steps."""
        return example_of(held_out, Decoding("random", temperature=1.0, steps=64))


@dataclass(frozen=True)
class NoEvaluation:
    """Nothing is evaluated along the way."""

    def start(self, held_out: Dataset) -> Callable[[MaskedDiffusionLM, bool], dict[str, Any]]:
        """Return a function that gives no figure."""
        return lambda model, last: {}

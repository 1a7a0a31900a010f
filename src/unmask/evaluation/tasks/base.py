"""What the tasks share: rows are decoded, judged and counted, per stratum, with Wilson intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.config import positive_int
from unmask.data.stream import RowStream
from unmask.evaluation.trace import Example, example_of
from unmask.masks import ExactCount
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.objectives import RowMean
from unmask.processes import IndependentMasking
from unmask.sampling import Decoding, generate


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share, (low, high)."""
    from scipy.stats import binomtest  # half a second, of commands that judge nothing too

    interval = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def shares(right: np.ndarray, strata: np.ndarray) -> dict[str, Any]:
    """Count right answers [n], and those of each stratum [n] apart.

    Returns:
        "solved": share, "interval": its 95% Wilson interval, "puzzles": n, "strata": the same three for each.
    """
    return {**_share(right), "strata": {str(name): _share(right[strata == name]) for name in np.unique(strata)}}


def _share(right: np.ndarray) -> dict[str, Any]:
    count, n = int(right.sum()), len(right)
    return {"solved": count / n, "interval": wilson(count, n), "puzzles": n}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Judge a model on unseen rows. A new task defines `load` and `evaluate`; `DecodingTask` has the second.

    Attributes:
        puzzles: rows of each evaluation during training, evenly over the strata.
        final_puzzles: rows of the last evaluation.
        batch_size: rows of a forward.
    """

    puzzles: int = 250
    final_puzzles: int = 1000
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("puzzles", "final_puzzles", "batch_size"):
            positive_int(name, getattr(self, name))

    def load(self, limit: int | None = None) -> Dataset:
        """At most `limit` rows with the columns `tokens`, `maskable` and `stratum`, and what judging needs."""
        raise NotImplementedError

    def evaluate(self, model: MaskedDiffusionLM, dataset: Dataset) -> dict[str, Any]:
        """Judge the model on a data set that `load` made; the record has what `shares` counts, and more."""
        raise NotImplementedError

    def start(self, held_out: Dataset | None = None) -> Callable[[MaskedDiffusionLM, bool], dict[str, Any]]:
        """Load the rows; return the function that a `Trainer` calls as evaluate(model, last).

        A task has rows of its own; the run's held-out rows are not looked at.
        """
        curve, final = self.load(self.puzzles), self.load(self.final_puzzles)
        return lambda model, last: self.evaluate(model, final if last else curve)


@dataclass(frozen=True, kw_only=True)
class DecodingTask(Task):
    """Decode unseen rows and judge them. A new one defines `load` and `right`.

    Attributes:
        decoding: how rows are decoded.
    """

    decoding: Decoding = field(default_factory=Decoding)

    @property
    def ends(self) -> Mapping[str, Any]:
        """Behind which token nothing of an answer is judged, and what no answer holds: options of `generate`."""
        return {}

    def right(self, dataset: Dataset, rows: TokenBatch, tokens: Tensor) -> np.ndarray:
        """Tell which of the decoded rows, tokens [n, L], are right: bool [n]."""
        raise NotImplementedError

    def word(self, token: int) -> str:
        """How a token is written for people."""
        return str(token)

    def example(self, held_out: Dataset | None = None) -> Example:
        """The row to watch: of those that are evaluated during training, the one with the most to unmask."""
        return example_of(self.load(self.puzzles), self.decoding, word=self.word)

    def evaluate(self, model: MaskedDiffusionLM, dataset: Dataset) -> dict[str, Any]:
        """Decode and judge a data set that `load` made.

        Returns:
            "solved": share, "interval": its 95% Wilson interval, "puzzles": n, "strata": the same three
            for each stratum, "loss": row-mean nll in nats under noise that is the same for every model and
            step, "tokens_per_second" and "forwards_per_token" of the decoding.
        """
        device = model.device
        rows = RowStream(dataset).rows(torch.arange(len(dataset))).to(device)
        made = generate(model, rows, self.decoding, batch_size=self.batch_size, **self.ends)
        return {
            **shares(self.right(dataset, rows, made.tokens), np.array(dataset["stratum"])),
            "loss": self._loss(model, dataset, device),
            "tokens_per_second": made.tokens_per_second,
            "forwards_per_token": made.forwards_per_token,
        }

    def _loss(self, model: MaskedDiffusionLM, dataset: Dataset, device: torch.device) -> float:
        masking, objective = IndependentMasking(mask=ExactCount(), coupling="stratified"), RowMean()
        batch = masking.start(RowStream(dataset), len(dataset), seed=0, device=device).draw()
        weights = objective.weights(batch) / objective.normaliser(batch).float()
        with evaluating(model), torch.no_grad():
            pieces = [slice(i, i + self.batch_size) for i in range(0, len(batch), self.batch_size)]
            return float(sum(model(batch[piece], weights[piece]).loss for piece in pieces))

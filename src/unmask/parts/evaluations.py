"""What is evaluated along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from unmask import noise
from unmask.config import positive_int, require
from unmask.data import RowStream, TextTokenizer
from unmask.evaluation.estimate import ratio
from unmask.evaluation.generative import beginning_of, sample_tokens
from unmask.evaluation.likelihood import LikelihoodConfig, RowNats, likelihood
from unmask.evaluation.tasks import same_answer, shares
from unmask.evaluation.trace import Example, example_of
from unmask.masks import smallest
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.parts.text import spread
from unmask.sampling import Decoding, generate

Evaluate = Callable[[MaskedDiffusionLM, bool], dict[str, Any]]


def nats_figures(found: RowNats) -> dict[str, Any]:
    """What a likelihood comes to: "nats_per_token", its "interval" over rows, and "rows"."""
    nats = found.nats_per_token
    return {"nats_per_token": nats.value, "interval": (nats.low, nats.high), "rows": len(found.nats)}


def _summary(found: RowNats) -> dict[str, Any]:
    figures = nats_figures(found)
    return {"loss": figures["nats_per_token"], **figures}


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

    def start(self, held_out: Dataset) -> Evaluate:
        """Return the function that a `Trainer` calls as evaluate(model, last).

        It gives "nats_per_token" (and "loss", the same), "interval" over rows, and "rows".
        """
        return lambda model, last: _summary(self.measure(model, held_out))

    def measure(self, model: MaskedDiffusionLM, rows: Dataset) -> RowNats:
        """The negative ELBO of rows."""
        config = LikelihoodConfig(samples=self.samples, seed=self.seed)
        return likelihood(model, rows, config, batch_size=self.batch_size)

    def example(self, held_out: Dataset) -> Example:
        """The held-out row with the most to unmask, drawn in a random order at temperature 1, in at most 64 steps."""
        return example_of(held_out, Decoding("random", temperature=1.0, steps=64))


@dataclass(frozen=True)
class HeldOutRows:
    """What `HeldOutLikelihood` gives, for each of the held-out rows too: models are compared row by row."""

    rows: int = 256
    """Rows at most, spread evenly over those that are held out."""
    likelihood: HeldOutLikelihood = field(default_factory=lambda: HeldOutLikelihood(samples=4))
    """How it is estimated."""

    def __post_init__(self) -> None:
        positive_int("rows", self.rows, least=2)

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last). It gives "nats" and "tokens" besides, of each row."""
        rows = spread(held_out, self.rows)

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            found = self.likelihood.measure(model, rows)
            return {**_summary(found), "nats": found.nats.tolist(), "tokens": found.tokens.tolist()}

        return evaluate


@dataclass(frozen=True)
class HeldOutAnswers:
    """Exact answers to the held-out prompts, and the negative ELBO of the held-out rows."""

    rows: int = 64
    """Prompts of each evaluation during training."""
    final_rows: int = 256
    """Prompts of the last evaluation."""
    decoding: Decoding = field(default_factory=lambda: Decoding(steps=32))
    """How responses are decoded."""
    likelihood: HeldOutLikelihood = field(default_factory=HeldOutLikelihood)
    """The likelihood of the rows."""

    def __post_init__(self) -> None:
        for name in ("rows", "final_rows"):
            positive_int(name, getattr(self, name))

    def start_text(self, held_out: Dataset, tokenizer: TextTokenizer) -> Evaluate:
        """Return the function that a `Trainer` calls as evaluate(model, last).

        It gives what `HeldOutLikelihood` gives, its interval as "nats_per_token_interval", and what `answered` gives.
        """
        of_rows = self.likelihood.start(held_out)

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            told = of_rows(model, last)
            told["nats_per_token_interval"] = told.pop("interval")
            part = spread(held_out, self.final_rows if last else self.rows)
            return {**told, **self.answered(model, part, tokenizer)}

        return evaluate

    def answered(self, model: MaskedDiffusionLM, dataset: Dataset, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Answer the prompts of rows: "solved", its "interval", "puzzles" and "strata", as tasks give them.

        An answer is right if it is the same, word for word or as a number (`same_answer`).
        """
        rows = RowStream(dataset).rows(torch.arange(len(dataset)))
        made = generate(
            model,
            rows.to(model.device),
            self.decoding,
            batch_size=self.likelihood.batch_size,
            **tokenizer.ends,
        ).tokens.cpu()
        right = [
            same_answer(*(tokenizer.first_text(tokens[maskable].tolist()) for tokens in (answer, truth)))
            for answer, truth, maskable in zip(made, rows.tokens, rows.maskable, strict=True)
        ]
        return shares(np.array(right), np.full(len(right), "all"))

    def example(self, held_out: Dataset) -> Example:
        """The held-out row with the most to unmask."""
        return example_of(held_out, self.decoding)


@dataclass(frozen=True)
class HeldOutSequences:
    """Negative ELBO of the held-out sequences; at the end also how well they are filled in, and new ones."""

    hidden: float = 0.5
    """Share of a sequence that is hidden to be filled in."""
    rows: int = 64
    """Sequences that are filled in."""
    texts: int = 4
    """New sequences in the record of the last evaluation."""
    likelihood: HeldOutLikelihood = field(default_factory=HeldOutLikelihood)
    """The likelihood of the rows."""

    def __post_init__(self) -> None:
        for name in ("rows", "texts"):
            positive_int(name, getattr(self, name))
        require(0 < self.hidden <= 1, f"hidden is a share in (0, 1], got {self.hidden}")

    def start_text(self, held_out: Dataset, tokenizer: TextTokenizer) -> Evaluate:
        """Return the function that a `Trainer` calls as evaluate(model, last).

        It gives what `HeldOutLikelihood` gives. At the end also "infilled": the share of hidden letters that are
        right when a share of each sequence is hidden at random and decoded, the surest first;
        "infilled_interval" over sequences; and "samples", new sequences from nothing.
        """
        of_rows = self.likelihood.start(held_out)

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            found = of_rows(model, last)
            if not last:
                return found
            part = spread(held_out, self.rows)
            rows = RowStream(part).rows(torch.arange(len(part)))
            u = noise.uniforms(
                self.likelihood.seed, rows.row, rows.draw, rows.length, purpose=noise.Purpose.EVALUATION
            )
            count = (rows.maskable.sum(1) * self.hidden).ceil().long()
            rows = replace(rows, maskable=smallest(u, rows.maskable, count[:, None]))
            device = model.device
            made = generate(
                model,
                rows.to(device),
                Decoding(steps=32),
                batch_size=self.likelihood.batch_size,
                suppress_tokens=tokenizer.suppress_tokens,
            ).tokens.cpu()
            right = ratio(((made == rows.tokens) & rows.maskable).sum(1), rows.maskable.sum(1))
            drawn = Decoding("random", temperature=1.0)
            length = rows.length - len(beginning_of(model, tokenizer))  # a row of the model has no room for more
            tokens, _ = sample_tokens(model, tokenizer, self.texts, length, drawn)
            samples = [tokenizer.first_text(row) for row in tokens.tolist()]
            return {
                **found,
                "infilled": right.value,
                "infilled_interval": (right.low, right.high),
                "samples": samples,
            }

        return evaluate

    def example(self, held_out: Dataset) -> Example:
        """The longest held-out sequence; see `HeldOutLikelihood.example`."""
        return self.likelihood.example(held_out)


@dataclass(frozen=True)
class NoEvaluation:
    """Nothing is evaluated along the way; a run that says how often to evaluate is refused."""

    def start(self, held_out: Dataset) -> Evaluate:
        """Return a function that gives no figure."""
        return lambda model, last: {}

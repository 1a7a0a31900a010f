"""What the studies measure besides the library's own evaluations: values that a config can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from unmask import LikelihoodConfig, MaskedDiffusionLM
from unmask.data import load_text
from unmask.data.documents import Split
from unmask.evaluation.exact import order_likelihood
from unmask.evaluation.generative import distinct, sample_tokens, unigram_entropy
from unmask.evaluation.likelihood import RowNats, likelihood
from unmask.parts import TextData
from unmask.parts.text import spread
from unmask.sampling import Decoding

Evaluate = Callable[[MaskedDiffusionLM, bool], dict[str, Any]]


def _result(found: RowNats) -> dict[str, Any]:
    nats = found.nats_per_token
    return {"nats_per_token": nats.value, "interval": (nats.low, nats.high), "rows": len(found.nats)}


@dataclass(frozen=True)
class Likelihood:
    """Negative ELBO of the run's held-out rows, the first `rows` of them along the way and all at the end."""

    noise: LikelihoodConfig
    rows: int = 64

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last)."""
        curve = spread(held_out, self.rows)
        return lambda model, last: _result(likelihood(model, held_out if last else curve, self.noise))


@dataclass(frozen=True)
class OrderLikelihood:
    """Exact negative log-likelihood of the held-out rows, decoded by a policy block after block."""

    policy: str
    block_size: int

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last)."""
        return lambda model, last: _result(order_likelihood(model, held_out, self.policy, block_size=self.block_size))


@dataclass(frozen=True)
class TextLikelihood:
    """Negative ELBO of other letters than the run's: a part of its texts, or a corpus of another kind."""

    source: str = "sotu"
    split: Split = "test"
    rows: int = 256
    length: int = 128
    noise: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig(samples=4))

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last)."""
        texts = load_text(self.source, self.split, tokenizer=TextData().tokenizer(), length=self.length)
        rows = spread(texts, self.rows)
        return lambda model, last: _result(likelihood(model, rows, self.noise))


@dataclass(frozen=True)
class GeneratedLetters:
    """Texts in 27 letters, made in random order: the entropy of their letters and their shares of new n-grams."""

    rows: int = 48
    length: int = 128
    decoding: Decoding = field(default_factory=lambda: Decoding("random", temperature=1.0, tokens_per_step=2))

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last)."""

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            tokens, _ = sample_tokens(model, TextData().tokenizer(), self.rows, self.length, self.decoding)
            shares = {f"distinct-{n}": distinct(tokens, n) for n in (1, 2, 3)}
            return {"entropy, nats": unigram_entropy(tokens).value, **shares}

        return evaluate

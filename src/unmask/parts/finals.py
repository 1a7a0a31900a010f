"""What final models are measured by besides what is evaluated along the way; slow enough to be done once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from unmask.config import positive_int
from unmask.data import TextTokenizer, load_text
from unmask.data.documents import Split
from unmask.evaluation.exact import order_likelihood
from unmask.evaluation.generative import distinct, sample_tokens, unigram_entropy
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.parts.evaluations import Evaluate, nats_figures
from unmask.parts.text import spread
from unmask.sampling import Decoding


@dataclass(frozen=True)
class LikelihoodBy:
    """Negative ELBO of the held-out rows under any noise: that of block after block, for one."""

    noise: LikelihoodConfig
    """How it is estimated."""
    rows: int = 64
    """Rows along the way; at the end all are measured."""

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last). It gives "nats_per_token", its "interval" over rows and "rows"."""
        curve = spread(held_out, self.rows)
        return lambda model, last: nats_figures(likelihood(model, held_out if last else curve, self.noise))


@dataclass(frozen=True)
class OrderLikelihood:
    """Exact negative log-likelihood of the held-out rows, decoded by a policy block after block."""

    policy: str
    """Name of the policy, a deterministic one."""
    block_size: int
    """Tokens of a block."""

    def start(self, held_out: Dataset) -> Evaluate:
        """Return evaluate(model, last), which gives what `LikelihoodBy` gives."""
        size = self.block_size
        return lambda model, last: nats_figures(order_likelihood(model, held_out, self.policy, block_size=size))


@dataclass(frozen=True)
class TextLikelihood:
    """Negative ELBO of other texts than the run's, in its tokens: of a test part, or zero-shot of another corpus."""

    source: str = "sotu"
    """As `TextData.source`."""
    split: Split = "test"
    """Part of its documents."""
    rows: int = 256
    """Rows, spread evenly over the part."""
    length: int = 128
    """Tokens of a row."""
    noise: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig(samples=4))
    """How it is estimated."""

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            positive_int(name, getattr(self, name))

    def start_text(self, held_out: Dataset, tokenizer: TextTokenizer) -> Evaluate:
        """Return evaluate(model, last), which gives what `LikelihoodBy` gives."""
        rows = spread(load_text(self.source, self.split, tokenizer=tokenizer, length=self.length), self.rows)
        return lambda model, last: nats_figures(likelihood(model, rows, self.noise))


@dataclass(frozen=True)
class GeneratedTexts:
    """Texts from nothing: the entropy of their tokens and their shares of distinct n-grams. Of little use alone."""

    rows: int = 48
    """Texts."""
    length: int = 128
    """Tokens of a text."""
    decoding: Decoding = field(default_factory=lambda: Decoding("random", temperature=1.0, tokens_per_step=2))
    """How they are made."""

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            positive_int(name, getattr(self, name))

    def start_text(self, held_out: Dataset, tokenizer: TextTokenizer) -> Evaluate:
        """Return evaluate(model, last). It gives "entropy, nats" and "distinct-1" to "distinct-3"."""

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            tokens, _ = sample_tokens(model, tokenizer, self.rows, self.length, self.decoding)
            shares = {f"distinct-{n}": distinct(tokens, n) for n in (1, 2, 3)}
            return {"entropy, nats": unigram_entropy(tokens).value, **shares}

        return evaluate

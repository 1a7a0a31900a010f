"""How likely are rows? The negative ELBO in nats and bits per token, always with an interval.

The estimate comes from the code that trains: a masking config draws rates and masks, the ELBO objective weighs
the losses (docs/estimators.md). Every row is a batch of its own, of `samples` draws. So a coupling (stratified,
antithetic) acts among the draws of one row, rows stay independent of one another, and all noise is a function of
(seed, row, sample) alone: common to all compared models, and the same for any batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, Tensors, TokenBatch
from unmask.config import ours, positive_int, require
from unmask.data.stream import RowStream
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.estimate import Estimate, exp, ratio
from unmask.fitted_times import is_fitted
from unmask.kinds import kinds_checked
from unmask.masks import ExactCount
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.objectives import ELBO
from unmask.processes import Blockwise, IndependentMasking, Masking

T = TypeVar("T", bound=Tensors)

LEAST_EFFECTIVE = 0.4
"""Least effective sample size of a time distribution: below it intervals meant for 95% cover in less than 86% of the
cases (50 rows, 8 Bernoulli samples; tests/evaluation/test_coverage.py measures, slowly, what is accepted). Of each
token too, where a mask rule has rates by token."""

_CUT = "\ufffd"
"""What is decoded of bytes that are no whole character."""
_NODES = 64
_LAST = 53 * math.log(2)  # uniforms of 53 bits leave of 1 - t at least exp of minus this


@dataclass(frozen=True)
class LikelihoodConfig:
    """How a likelihood is estimated; two numbers compare only where this is the same.

    Attributes:
        masking: draws rates and masks. By default the number of masked tokens is uniform on 1..L_eff and
            stratified over the draws of a row. It must state its density, draw all rates of the objective, and none
            so seldom that intervals do not cover (`LEAST_EFFECTIVE`). `Blockwise` measures the likelihood of block
            after block, without causal rows.
        samples: forwards of each row.
        seed: of the noise.
        objective: `ELBO(low=...)` for the part of the bound that rates above `low` give, labelled so.
    """

    masking: Masking = field(default_factory=lambda: IndependentMasking(mask=ExactCount(), coupling="stratified"))
    samples: int = 8
    seed: int = 0
    objective: ELBO = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        positive_int("samples", self.samples)
        self.objective.check(self.masking)
        inner = getattr(self.masking, "masking", self.masking)
        if isinstance(inner, IndependentMasking):
            together = inner.rows_per_unit * (2 if inner.coupling == "antithetic" else 1)
            require(
                self.samples % together == 0,
                f"samples={self.samples} does not divide into the {together} that {inner} draws together: use a "
                "multiple",
            )
        time = getattr(inner, "time", None)
        require(
            not is_fitted(time),
            f"{time} is fitted to a model, so two models would be measured by different noise: use Uniform()",
        )
        effective = 1.0 if time is None else time.effective_sample_size
        require(
            effective >= LEAST_EFFECTIVE,
            f"{time} draws some rates so seldom that the weights 1 / density have a heavy tail: effective sample "
            f"size {effective:.2g}, at least {LEAST_EFFECTIVE:g} is needed for intervals that cover. Use Uniform()",
        )
        require(
            not isinstance(self.masking, Blockwise) or isinstance(self.masking.size, int),
            f"{self.masking} changes its blocks with the step, and each size has a likelihood of its own: "
            "choose one number",
        )
        require(
            not getattr(self.masking, "causal", 0.0),
            f"{self.masking} draws some rows in blocks, others from left to right, so the mean would mix two "
            "bounds: measure the blocks with causal=0, and the order from left to right with blocks of size 1",
        )


@dataclass(frozen=True, eq=False)
class RowNats:
    """Negative log-likelihoods of rows, or upper bounds on them: what `of` says.

    Attributes:
        of: which number it is, and of which distribution.
        nats: [N] float64, one for each row.
        tokens: [N] int64, L_eff.
    """

    of: str
    nats: Tensor
    tokens: Tensor

    @property
    def nats_per_token(self) -> Estimate:
        """Σ nats / Σ L_eff."""
        return self.per(self.tokens)

    @property
    def bits_per_token(self) -> Estimate:
        """The same over ln 2."""
        return self.nats_per_token.map(_bits)

    @property
    def perplexity(self) -> Estimate:
        """exp of the nats per token: a bound on the perplexity where the nats are a bound."""
        return self.nats_per_token.map(exp)

    def bits_per(self, units: Tensor) -> Estimate:
        """Bits for each unit, where row i has units[i] of them (see `characters`)."""
        return self.per(units).map(_bits)

    def per(self, units: Tensor) -> Estimate:
        """Nats for each unit: the ratio of sums Σ nats / Σ units, with its 95% interval.

        The standard error of the ratio is the delta method's, over groups of neighbouring rows, as those cut from one
        document are alike (`unmask.evaluation.estimate.ratio`). It holds the noise of the masks too.
        """
        return ratio(self.nats, units)

    def difference(self, other: RowNats) -> Estimate:
        """This model's nats per token less the other's, paired by row, with an interval of its own.

        Raises:
            ValueError: where the two are of different rows or are different numbers.
        """
        require(
            torch.equal(self.tokens, other.tokens) and self.of == other.of,
            f"a paired difference needs the same number of the same rows, got '{self.of}' of {len(self.nats)} rows "
            f"and '{other.of}' of {len(other.nats)}",
        )
        return ratio(self.nats - other.nats, self.tokens)


@kinds_checked
def likelihood(
    model: MaskedDiffusionLM,
    dataset: Dataset,
    config: LikelihoodConfig | None = None,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda rows: None,
) -> RowNats:
    """Estimate the negative ELBO of each row of a data set.

    Args:
        model: in its own precision, without dropout, on its own device.
        dataset: rows with the columns `tokens` and `maskable`; what is not maskable is given, and not scored.
        config: masking, samples and seed.
        batch_size: forwards at a time; changes no number.
        progress: called with the number of rows done since the last call.

    Returns:
        Unbiased estimates, one for each row.
    """
    config = config or LikelihoodConfig()
    nats, tokens = [], []
    for batch, nll in losses(model, dataset, config, batch_size=batch_size):
        total = (config.objective.weights(batch).double() * nll).sum(1).view(-1, config.samples).mean(1)
        nats.append(total)
        tokens.append(batch.clean.effective_length[:: config.samples])
        progress(len(total))
    return RowNats(f"negative ELBO{config.objective.left_out}, {config.masking}", torch.cat(nats), torch.cat(tokens))


def losses(
    model: MaskedDiffusionLM, dataset: Dataset, config: LikelihoodConfig, *, batch_size: int = 64
) -> Iterator[tuple[MaskedBatch, Tensor]]:
    """Yield (batch, nll [B, L] float64), on the CPU, with all samples of a row next to one another.

    Raises:
        ValueError: at once, for rows that the model cannot read, and for rates by token under which some row's
            weights have too heavy a tail.
    """
    MaskedDiffusionLM.check(model)
    _check_tails(dataset, config)
    with evaluating(model):
        for clean in chunks(dataset, max(1, batch_size // config.samples), model):
            batch = MaskedBatch.concatenated([_samples(clean[i : i + 1], config) for i in range(len(clean))])
            yield batch, masked_nll(model, batch, batch_size)


@torch.no_grad()
def masked_nll(model: MaskedDiffusionLM, batch: MaskedBatch, batch_size: int) -> Tensor:
    """[B, L] float64 nats of the masked tokens, on the CPU; rows without a mask cost no forward."""
    positive_int("batch_size", batch_size)
    device = model.device
    nll = torch.zeros(batch.masked.shape, dtype=torch.float64)
    run = batch.masked.any(1).nonzero()[:, 0]
    for rows in run.split(batch_size):
        nll[rows] = model(batch[rows].to(device)).nll.cpu().double()
    return nll


def effective_sample_sizes(masking: IndependentMasking, rows: TokenBatch) -> Tensor:
    """[B, L] (E w)² / E w² of each token's w = 1 / density over the rates t: the share of its draws that count.

    w is the token's ELBO weight 1 / (rate · density) where it is masked, times the probability of that. With rates
    t it is that of the time distribution p. With rates r(t), w = r'(t) / p(t): a token that is masked at nearly the
    highest t alone has few, huge weights. r = 1 - (1 - t)^c under uniform rates has E w² = c² / (2c - 1), and
    no second moment at c of 1/2 and below.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    low, _ = masking.time.support
    first, second = (torch.zeros(rows.maskable.shape, dtype=torch.float64) for _ in range(2))
    for node, weight in zip(nodes, weights, strict=True):
        # In y = -ln(1 - t), over the support, weights grow or fall as exp(y) does; as y = z², nodes crowd at low t.
        z = _LAST**0.5 * (1 + node) / 2
        left = math.exp(-(z**2))
        t = torch.full((len(rows),), low + (1 - low) * (1 - left), dtype=torch.float64)
        mass = masking.time.density(t)[:, None] * weight * _LAST**0.5 * z * left * (1 - low)
        w = 1 / masking.mask.rate_and_density(t, rows, masking.time)[1]
        first, second = first + mass * w, second + mass * w**2
    return first**2 / second


def characters(dataset: Dataset, tokenizer: TextTokenizer, of: str = "characters") -> Tensor:
    """[N] int64 number of characters (or UTF-8 bytes) of the maskable tokens of each row.

    A character whose bytes lie in two rows counts where it begins. Of its bytes each row counts its own or fewer, as
    what is cut is decoded as � for each byte, or once for its first ones. End-of-text tokens are no characters (a
    space that ends texts is one).
    """
    require(of in ("characters", "bytes"), f"count 'characters' or 'bytes', not {of!r}")
    counts, end = [], tokenizer.eos_token_id
    written = tokenizer.decode([end]) == " "
    for clean in chunks(dataset, 1000):
        for tokens, maskable in zip(clean.tokens, clean.maskable, strict=True):
            text = tokenizer.decode(tokens[maskable & (written | (tokens != end))].tolist())
            if of == "characters":
                counts.append(len(text.strip(_CUT)) + text.endswith(_CUT))
            else:
                counts.append(len(text.encode()) - (len(_CUT.encode()) - 1) * text.count(_CUT))
    return torch.tensor(counts)


def chunks(dataset: Dataset, size: int, model: MaskedDiffusionLM | None = None) -> Iterator[TokenBatch]:
    """The rows of a data set in order, `size` at a time; a row's number is its place.

    Raises:
        ValueError: at once, for a row that the model cannot read, where one is given.
    """
    if model is not None:
        model.check_rows(dataset)
    stream = RowStream(dataset)
    for row in torch.arange(len(dataset)).split(size):
        yield stream.rows(row)


class _Copies:
    """A stream of one row: its d-th draw is its d-th sample."""

    rank, world_size, importance = 0, 1, None

    def __init__(self, row: TokenBatch) -> None:
        self.row, self.position = row, 0

    def take(self, n: int, counts: list[int] | None = None) -> TokenBatch:
        draw = torch.arange(self.position, self.position + n)
        self.position += n
        return replace(self.row[torch.zeros(n, dtype=torch.int64)], draw=draw)

    def expect(self, n: int) -> None:
        """Nothing is to be fetched."""


def _samples(row: TokenBatch, config: LikelihoodConfig) -> MaskedBatch:
    """All draws of one row, by a process of its own. Without the padding, whose blocks would draw rates too."""
    row = row.padded(int(row.attention.sum()))
    seed = int(noise.hashes(config.seed, int(noise.Purpose.EVALUATION), row.row)[0])
    stream = cast(RowStream, _Copies(row))
    return config.masking.start(stream, config.samples, seed).draw()


def _check_tails(dataset: Dataset, config: LikelihoodConfig) -> None:
    """Raise ValueError where rates by token leave a token of some row too few effective samples."""
    masking = config.masking
    inner = masking.masking if isinstance(masking, Blockwise) else masking
    if not (isinstance(inner, IndependentMasking) and inner.mask.by_token):
        return  # all tokens are as the time distribution, which is checked with the config
    for clean in chunks(dataset, 256):
        units = masking.cut(clean.length).units(clean) if isinstance(masking, Blockwise) else clean
        sizes = effective_sample_sizes(inner, units).masked_fill(~units.maskable, 1.0)
        least = sizes.view(len(clean), -1).amin(1)
        where = int(least.argmin())
        require(
            bool(least[where] >= LEAST_EFFECTIVE),
            f"under {inner.mask} a token of row {int(clean.row[where])} has weights 1 / density with a heavy tail: "
            f"effective sample size {float(least[where]):.2g}, at least {LEAST_EFFECTIVE:g} is needed for intervals "
            "that cover. Use rates that differ less within a row, or mask=ExactCount()",
        )


def _bits(nats: float) -> float:
    return nats / math.log(2)


ours(LikelihoodConfig)

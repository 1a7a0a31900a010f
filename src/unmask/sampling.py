"""Generation: one decoding loop, by parameters. Reveal policies are those of PUMA's chain."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import Scores, TokenBatch
from unmask.model import MaskedDiffusionLM
from unmask.policies import Policy, needs_of, resolve, top


@dataclass(frozen=True)
class Generation:
    """The result of `generate`.

    Attributes:
        tokens: [B, L] rows with their maskable positions filled.
        step: [B, L] decoding step at which a position was revealed, from 0; -1 where it was given.
        confidence: [B, L] top probability when revealed; 1 where given.
        forwards: row forwards spent: a row that is finished costs no more.
        seconds: wall-clock time.
    """

    tokens: Tensor
    step: Tensor
    confidence: Tensor
    forwards: int
    seconds: float

    @property
    def revealed(self) -> int:
        """Tokens generated."""
        return int((self.step >= 0).sum())

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated for each second."""
        return self.revealed / max(self.seconds, 1e-9)

    @property
    def forwards_per_token(self) -> float:
        """Row forwards for each token generated: 1 for one token a step."""
        return self.forwards / max(1, self.revealed)


@torch.no_grad()
def generate(
    model: MaskedDiffusionLM,
    batch: TokenBatch,
    policy: str | Policy = "confidence",
    tokens_per_step: int = 1,
    threshold: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Generation:
    """Fill every maskable position of the rows, in the order the policy chooses.

    Args:
        model: the denoiser. It is evaluated in the ambient autocast mode; statistics are fp32.
        batch: the rows; what their maskable positions hold is not looked at.
        policy: reveal policy, by name or as a function.
        tokens_per_step: positions revealed in each row at each step, at least 1.
        threshold: reveal besides every position whose top probability exceeds this, in (0, 1).
        temperature: 0 takes the most probable token; above 0 samples from softmax(logits / temperature).
        seed: of the sampling noise, a function of (seed, row, draw, position) alone.
        on_step: called as (step, tokens [B, L], masked [B, L]) after each step.

    Returns:
        A `Generation`.

    Raises:
        ValueError: for settings outside their range.
    """
    if tokens_per_step < 1:
        raise ValueError(f"tokens_per_step must be at least 1, got {tokens_per_step}")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold is a probability in (0, 1), got {threshold}")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    order = resolve(policy)
    with _evaluating(model):
        return _decode(model, batch, order, tokens_per_step, threshold, temperature, seed, on_step)


def _decode(
    model: MaskedDiffusionLM,
    batch: TokenBatch,
    order: Policy,
    tokens_per_step: int,
    threshold: float | None,
    temperature: float,
    seed: int,
    on_step: Callable[[int, Tensor, Tensor], None] | None,
) -> Generation:
    """The loop of `generate`."""
    began = time.perf_counter()
    masked = batch.maskable.clone()
    tokens = batch.tokens.masked_fill(masked, model.mask_token_id)
    step_of = torch.full_like(tokens, -1)
    confidence = torch.ones(tokens.shape, device=tokens.device)
    forwards, step = 0, 0
    while True:
        rows = masked.any(1).nonzero()[:, 0]  # finished rows leave the batch
        if len(rows) == 0:
            break
        open_, here = masked[rows], batch[rows]
        logits = model.predict(tokens[rows], here.attention, open_)
        scores = _spread(Scores.from_logits(logits, needs=needs_of(order)), open_)
        draws = noise.uniforms(seed, here.row, here.draw, here.length, purpose=noise.Purpose.SAMPLE, salt=2 * step)
        count = torch.full((len(rows),), tokens_per_step, device=tokens.device)
        reveal = top(order(scores, draws), open_, count)
        if threshold is not None:
            reveal |= open_ & (scores.log_confidence > math.log(threshold))
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            u = noise.uniforms(
                seed, here.row, here.draw, here.length, purpose=noise.Purpose.SAMPLE, salt=2 * step + 1
            )
            chosen = _sample(logits / temperature, u[open_])
        filled = tokens[rows].masked_scatter(open_, chosen)
        tokens[rows] = torch.where(reveal, filled, tokens[rows])
        step_of[rows] = step_of[rows].masked_fill(reveal, step)
        confidence[rows] = torch.where(reveal, scores.log_confidence.exp().float(), confidence[rows])
        masked[rows] = open_ & ~reveal
        forwards += len(rows)
        if on_step is not None:
            on_step(step, tokens, masked)
        step += 1
    return Generation(tokens, step_of, confidence, forwards, time.perf_counter() - began)


@contextmanager
def _evaluating(model: MaskedDiffusionLM) -> Iterator[None]:
    """Switch dropout off, and back on whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _spread(scores: Scores, masked: Tensor) -> Scores:
    """Lay statistics of the masked positions [N] out as [B, L]."""
    return scores.map(lambda v: v.new_zeros(masked.shape).masked_scatter(masked, v))


def _sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from softmax(logits) [N, V] by inverting its CDF at uniform [N]: one number a position."""
    cdf = logits.double().softmax(-1).cumsum(-1)
    index = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    return index.clamp(max=logits.shape[-1] - 1)

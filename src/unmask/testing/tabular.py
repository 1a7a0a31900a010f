"""A tiny world whose truth is known: a joint distribution over V^L strings, and denoisers for it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import TokenBatch


class TabularWorld:
    """All strings of L tokens out of V with their probabilities; exact conditionals by summation.

    Args:
        joint: [V, V, ..., V] with L dimensions, positive where a string can occur; it is normalised.
        error: size of a fixed perturbation of the denoiser's logits, one for each visible context, position and
            token. 0: the denoiser knows the true conditionals.
        seed: of the perturbation.
    """

    def __init__(self, joint: Tensor, error: float = 0.0, seed: int = 0) -> None:
        self.joint = joint.double() / joint.double().sum()
        self.length, self.vocab_size = joint.dim(), joint.shape[0]
        self.error, self.seed = error, seed

    @classmethod
    def random(cls, length: int, vocab_size: int, error: float = 0.0, seed: int = 0) -> TabularWorld:
        """A world with a random joint."""
        weights = noise.slot_uniforms(seed, 0, torch.arange(vocab_size**length))
        return cls((3 * weights).exp().reshape([vocab_size] * length), error, seed)

    @property
    def mask_token_id(self) -> int:
        """The token after the last."""
        return self.vocab_size

    def strings(self) -> tuple[Tensor, Tensor]:
        """Every string [V^L, L] and its probability [V^L]."""
        every = torch.tensor(list(itertools.product(range(self.vocab_size), repeat=self.length)))
        return every, self.joint.flatten()

    def rows(self, tokens: Tensor, maskable: Tensor | None = None) -> TokenBatch:
        """Strings [B, L] as a batch; by default every position is maskable."""
        count = len(tokens)
        return TokenBatch(
            tokens=tokens,
            maskable=torch.ones_like(tokens, dtype=torch.bool) if maskable is None else maskable,
            attention=torch.ones_like(tokens, dtype=torch.bool),
            row=torch.arange(count),
            draw=torch.zeros(count, dtype=torch.int64),
            weight=torch.ones(count),
        )

    def log_probabilities(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """What the denoiser predicts at every position given the visible tokens: [B, L, V] float64.

        At a visible position it is the conditional given the other visible tokens.
        """
        out = tokens.new_empty((*tokens.shape, self.vocab_size), dtype=torch.float64)
        for b, (row, hidden) in enumerate(zip(tokens.tolist(), masked.tolist(), strict=True)):
            for i in range(self.length):
                visible = tuple(
                    slice(None) if h or j == i else token
                    for j, (token, h) in enumerate(zip(row, hidden, strict=True))
                )
                rest = self.joint[visible]
                kept = [j for j, h in enumerate(hidden) if h or j == i]
                others = [axis for axis, j in enumerate(kept) if j != i]
                marginal = rest.sum(others) if others else rest
                context = [
                    self.vocab_size if h or j == i else t for j, (t, h) in enumerate(zip(row, hidden, strict=True))
                ]
                shift = noise.slot_uniforms(
                    self.seed,
                    sum(c * (self.vocab_size + 1) ** j for j, c in enumerate(context)),
                    torch.arange(self.vocab_size) + self.vocab_size * i,
                )
                out[b, i] = (marginal.log() + self.error * (2 * shift - 1)).log_softmax(-1)
        return out

    def nll(self, batch: TokenBatch, masked: Tensor, block: Tensor | None = None) -> Tensor:
        """[B, L] nats of the clean tokens at masked positions; 0 elsewhere.

        With `block` [L], the block of each position, each block is predicted from its own visible tokens and the
        clean ones of the blocks before it.
        """
        block = torch.zeros(self.length, dtype=torch.int64) if block is None else block
        nll = torch.zeros(masked.shape, dtype=torch.float64)
        for b in block.unique().tolist():
            hidden = masked & (block == b) | (block > b)
            log_p = self.log_probabilities(batch.tokens, hidden).gather(-1, batch.tokens[..., None])[..., 0]
            nll = torch.where(masked & (block == b), -log_p, nll)
        return nll

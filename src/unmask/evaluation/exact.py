"""Likelihoods that are exact, or closer than the ELBO, and of which distribution each of them is.

A masked diffusion model is a family of conditionals, so it has several likelihoods:

- the *order mixture*: draw an order of the maskable positions uniformly, then each token given those before it.
  p(x) = E_order [Π p(token | visible)]. The ELBO is its lower bound, E_order [log Π ...]
  (Uria et al. 2014, arXiv 1310.1757; Hoogeboom et al. 2021, arXiv 2110.02037);
- the importance-weighted bound log 1/K Σ_k p(x | order k) lies between the two, and rises with K in expectation
  (Burda et al. 2015, arXiv 1509.00519, theorem 1);
- a *policy's order*: a deterministic policy that reveals one token a step, looking at the visible state alone,
  fixes the order of every string. Its likelihood is that of decoding with it at temperature 1.

Both distributions sum to one over all strings; they differ wherever the conditionals are not those of one joint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from datasets import Dataset
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, TokenBatch
from unmask.config import positive_int, require
from unmask.evaluation.likelihood import RowNats, chunks, masked_nll
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.policies import Policy, needs_of, resolve, top
from unmask.policies import random as random_order
from unmask.processes.blocks import Blocks

LONGEST = 14
"""Most maskable positions of a row for the exact likelihood: 2^L forwards."""


@dataclass(frozen=True, eq=False)
class ExactLikelihood:
    """Exact numbers of a model's any-order conditionals.

    Attributes:
        elbo: negative ELBO, Σ_n h_n / n.
        mixture: negative log-likelihood of the mixture over all orders.
    """

    elbo: RowNats
    mixture: RowNats


def exact_likelihood(model: MaskedDiffusionLM, dataset: Dataset, batch_size: int = 256) -> ExactLikelihood:
    """Both from all 2^L_eff masks of each row.

    With f(M) the mean over the orders of a masked set M of the probability of revealing it,
    f(M) = 1/|M| Σ_{i in M} p(i | visible) · f(M without i): the mixture costs no more than the ELBO.

    Raises:
        ValueError: for a row with more than `LONGEST` maskable positions.
    """
    positive_int("batch_size", batch_size)
    elbo, mixture, tokens = [], [], []
    with evaluating(model):
        for clean in chunks(dataset, 1, model):
            table = _table(model, clean, batch_size)
            elbo.append(_elbo(table))
            mixture.append(_mixture(table))
            tokens.append(table.shape[1])
    length = torch.tensor(tokens)
    return ExactLikelihood(
        RowNats("exact negative ELBO", torch.stack(elbo), length),
        RowNats("exact, mixture over all orders", torch.stack(mixture), length),
    )


def order_likelihood(
    model: MaskedDiffusionLM,
    dataset: Dataset,
    policy: str | Policy = "confidence",
    seed: int = 0,
    batch_size: int = 64,
    block_size: int | None = None,
) -> RowNats:
    """The exact likelihood of a policy's order: Σ -log p(token revealed | visible), one token a step.

    Args:
        model: in its own precision, without dropout.
        dataset: rows with the columns `tokens` and `maskable`.
        policy: by name or as a function; it gets no nll, so it cannot peek. Its noise is common to all rows: the
            policy `random` is one order for all.
        seed: of that noise.
        batch_size: rows at a time; changes no number.
        block_size: the order within each block of so many positions, block after block, for a model trained with
            `Blockwise`; with 1 it is the autoregressive likelihood. None: no blocks.

    Returns:
        Exact values, L_eff forwards a row; with blocks as many as a block is long, for they are walked side by side.
    """
    positive_int("batch_size", batch_size)
    if block_size is not None:
        positive_int("block_size", block_size)
    nats, tokens, order = [], [], resolve(policy)
    with evaluating(model):
        for clean in chunks(dataset, batch_size, model):
            zero = torch.zeros(len(clean), dtype=torch.int64)
            fixed = noise.uniforms(seed, zero, zero, clean.length, purpose=noise.Purpose.EVALUATION)
            nats.append(_walk(model, clean, order, fixed, block_size))
            tokens.append(clean.effective_length)
    name = getattr(order, "__name__", str(order)) + (f" in blocks of {block_size}" if block_size else "")
    return RowNats(f"exact, order of the policy {name}", torch.cat(nats), torch.cat(tokens))


def importance_weighted(
    model: MaskedDiffusionLM, dataset: Dataset, orders: int = 8, seed: int = 0, batch_size: int = 64
) -> RowNats:
    """The importance-weighted bound: -log of the mean over `orders` random orders of p(x | order).

    With one order its expectation is the negative ELBO; with more it falls towards the order mixture's negative
    log-likelihood, and never below it in expectation.

    Args:
        model: in its own precision, without dropout.
        dataset: rows with the columns `tokens` and `maskable`.
        orders: K; the first of more orders are those of fewer.
        seed: of the orders, a function of (seed, row, number of the order).
        batch_size: forwards at a time; changes no number.

    Returns:
        One value a row, orders · L_eff forwards each.
    """
    positive_int("orders", orders)
    positive_int("batch_size", batch_size)
    nats, tokens = [], []
    with evaluating(model):
        for clean in chunks(dataset, max(1, batch_size // orders), model):
            copy = torch.arange(len(clean)).repeat_interleave(orders)
            draw = torch.arange(orders).repeat(len(clean))
            uniform = noise.uniforms(seed, clean.row[copy], draw, clean.length, purpose=noise.Purpose.EVALUATION)
            parts = [
                _walk(model, clean[copy[part]], random_order, uniform[part])
                for part in torch.arange(len(copy)).split(batch_size)
            ]
            nats.append(math.log(orders) - (-torch.cat(parts).view(-1, orders)).logsumexp(1))
            tokens.append(clean.effective_length)
    return RowNats(f"importance-weighted bound of {orders} orders", torch.cat(nats), torch.cat(tokens))


@torch.no_grad()
def _walk(
    model: MaskedDiffusionLM, clean: TokenBatch, order: Policy, uniform: Tensor, block_size: int | None = None
) -> Tensor:
    """[B] nats of revealing each row's tokens one by one in the policy's order."""
    device = model.device
    masked = clean.maskable.clone()
    total = torch.zeros(len(clean), dtype=torch.float64)
    blocks = Blocks.of(clean.length, block_size)
    while (rows := masked.any(1).nonzero()[:, 0]).numel():
        open_ = masked[rows]
        block = None if block_size is None else blocks.numbers(open_)
        batch = MaskedBatch(clean[rows], open_, None, None, block).to(device)
        found = model(batch, needs=needs_of(order)).scores.to("cpu")
        scores = replace(found, nll=None).map(blocks.fold)  # a policy must not peek
        units = blocks.fold(open_)
        reveal = blocks.unfold(top(order(scores, blocks.fold(uniform[rows])), units, units.any(1).long()))
        total[rows] += (found.nll.double() * reveal).sum(1)
        masked[rows] = open_ & ~reveal
    return total


def _table(model: MaskedDiffusionLM, clean: TokenBatch, batch_size: int) -> Tensor:
    """[2^n, n] nats of each maskable token of a row under each mask; bit i of the mask's number is the i-th one."""
    places = clean.maskable[0].nonzero()[:, 0]
    count = len(places)
    require(
        count <= LONGEST,
        f"row {int(clean.row)} has {count} maskable positions: 2^{count} masks are too many (at most {LONGEST}). Use "
        "importance_weighted or order_likelihood",
    )
    bits = (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1
    masked = torch.zeros(len(bits), clean.length, dtype=torch.bool)
    masked[:, places] = bits
    rows = clean[torch.zeros(len(bits), dtype=torch.int64)]
    return masked_nll(model, MaskedBatch(rows, masked, None, None), batch_size)[:, places]


def _elbo(table: Tensor) -> Tensor:
    """Σ_n h_n / n."""
    size = _sizes(table)
    loss = table.sum(1)
    return torch.stack([loss[size == n].mean() / n for n in range(1, table.shape[1] + 1)]).sum()


def _mixture(table: Tensor) -> Tensor:
    """-log f(all), by the number of masked positions."""
    size, bit = _sizes(table), 1 << torch.arange(table.shape[1])
    log_f = torch.zeros(len(table), dtype=torch.float64)
    for n in range(1, table.shape[1] + 1):
        code = (size == n).nonzero()  # [masks of this size, 1]
        inside = code & bit > 0
        step = (log_f[code ^ (bit * inside)] - table[code[:, 0]]).masked_fill(~inside, -torch.inf)
        log_f[code[:, 0]] = step.logsumexp(1) - math.log(n)
    return -log_f[-1]


def _sizes(table: Tensor) -> Tensor:
    """[2^n] number of masked positions of each mask."""
    return ((torch.arange(len(table))[:, None] >> torch.arange(table.shape[1])) % 2).sum(1)

"""The column `guide`: numbers for each position of a data set's rows that a model makes once, before training.

`add_entropies` serves the mask rule `GIFT`, `add_order` the reveal policy `stored`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from datasets import Dataset
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, Scores, TokenBatch
from unmask.config import positive_int, require
from unmask.data.columns import check_dataset
from unmask.data.stream import RowStream
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.policies import Policy, needs_of, resolve, top


@kinds_checked
def add_entropies(model: MaskedDiffusionLM, rows: Dataset, batch_size: int = 32) -> Dataset:
    """Add a column `guide` with the entropy of each maskable position where all of them are hidden, in nats.

    Args:
        model: in the ambient autocast mode.
        rows: with the columns `tokens` and `maskable`; a column `guide` that is there is replaced.
        batch_size: rows of a forward.
    """

    def entropies(clean: TokenBatch) -> Tensor:
        found = _scores(model, clean, clean.maskable, ("entropy",)).entropy
        assert found is not None
        return found.double() * clean.maskable

    return _with_guide(model, rows, entropies, batch_size)


@kinds_checked
def add_order(
    model: MaskedDiffusionLM,
    rows: Dataset,
    policy: str | Policy = "confidence",
    entropy_bound: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> Dataset:
    """Add a column `guide` with the step at which a teacher's chain reveals each maskable position, from 0.

    The chain starts wholly masked and reveals clean tokens. The policy sees what is visible at each step alone, so
    training along the stored order leaves the minimiser where it is.

    Args:
        model: the teacher, in the ambient autocast mode.
        rows: as for `add_entropies`.
        policy: which position is next.
        entropy_bound: reveal several at a step: the policy's first, as many as their entropies without the largest
            one add up to at most this, in nats (entropy-bounded unmasking). None: one at a step.
        seed: of the policy's noise.
        batch_size: rows of a forward.

    Raises:
        ValueError: for an unknown policy or a negative bound.
    """
    rank = resolve(policy)
    require(entropy_bound is None or entropy_bound >= 0, f"entropy_bound must be at least 0, got {entropy_bound}")
    wanted = tuple(dict.fromkeys((*needs_of(rank), *(() if entropy_bound is None else ("entropy",)))))

    def order(clean: TokenBatch) -> Tensor:
        step = torch.zeros(clean.tokens.shape, dtype=torch.float64)
        masked, now = clean.maskable.clone(), 0
        while masked.any():
            scores = replace(_scores(model, clean, masked, wanted), nll=None, guide=clean.guide)
            draws = noise.uniforms(seed, clean.row, clean.draw, clean.length, purpose=noise.Purpose.REVEAL, salt=now)
            priority = rank(scores, draws)
            count = torch.ones(len(clean), dtype=torch.int64)
            if entropy_bound is not None:
                assert scores.entropy is not None
                first = priority.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
                entropy = scores.entropy.masked_fill(~masked, torch.inf).gather(1, first)
                within = entropy.cumsum(1) - entropy.cummax(1).values <= entropy_bound
                count = within.long().cumprod(1).sum(1).clamp(min=1)
            reveal = top(priority, masked, count)
            step[reveal] = now
            masked, now = masked & ~reveal, now + 1
        return step

    return _with_guide(model, rows, order, batch_size)


@torch.no_grad()
def _scores(model: MaskedDiffusionLM, clean: TokenBatch, masked: Tensor, needs: tuple[str, ...]) -> Scores:
    batch = MaskedBatch(clean, masked, None, None).to(model.device)
    scores = model(batch, needs=needs).scores
    assert scores is not None
    return scores.to("cpu")


def _with_guide(
    model: MaskedDiffusionLM, rows: Dataset, guide: Callable[[TokenBatch], Tensor], batch_size: int
) -> Dataset:
    found = []
    MaskedDiffusionLM.check(model)
    positive_int("batch_size", batch_size)
    check_dataset(rows)
    rows = rows.remove_columns([name for name in rows.column_names if name == "guide"])
    stream = RowStream(rows)
    with evaluating(model):
        for row in torch.arange(len(rows)).split(batch_size):
            clean = stream.rows(row)
            found += [value[real].tolist() for value, real in zip(guide(clean), clean.attention, strict=True)]
    return rows.add_column("guide", found)  # type: ignore[call-arg]  # a list will do

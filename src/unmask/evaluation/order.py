"""In which order are positions revealed, along the teacher-forced chain and in decoding, and do the two agree?

The PUMA paper's figure 3 (arXiv 2602.10314): early in training the chain already follows the order in which the
final model decodes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.stats
import torch
from datasets import Dataset
from torch import Tensor

from unmask.batch import MaskedBatch, TokenBatch
from unmask.config import from_json, require
from unmask.data.stream import RowStream
from unmask.evaluation.estimate import ratio
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.processes import ProgressiveUnmasking
from unmask.sampling import Decoding, generate
from unmask.schedules import integer_at
from unmask.store import checkpoint
from unmask.store.folder import read_config


@dataclass(frozen=True)
class Agreement:
    """How far two orders agree, over rows.

    Attributes:
        tau: mean of the rows' Kendall tau-b: 1 for the same order, 0 for none in common, -1 for the reverse.
        low: lower end of the 95% interval of the mean over rows (`estimate.ratio`); NaN for a single row.
        high: upper end.
        rows: rows that count: at least two positions, not all revealed at once in either order.
    """

    tau: float
    low: float
    high: float
    rows: int


@torch.no_grad()
def chain_order(
    model: MaskedDiffusionLM, batch: TokenBatch, masking: ProgressiveUnmasking, *, seed: int = 0, at: int = 0
) -> Tensor:
    """Follow the chain of each row, from its random start to its end, under a model that does not change.

    Args:
        model: gives the scores, on its own device; evaluated in the ambient autocast mode.
        batch: N rows, on any device.
        masking: of the chain.
        seed: of the chain's noise.
        at: training step whose number of stages is used.

    Returns:
        [N, L] int64 step at which the policy reveals each position, from 0; -1 where it was given, as clue,
        padding or part of the random start. What the chain leaves masked at its end comes last, all at once. On the
        rows' device.
    """
    device, batch = batch.tokens.device, batch.to("cpu")  # chains live there
    stages = integer_at(masking.stages, at)
    chain = replace(masking, stages=stages).chain(stages, seed)
    stage = torch.zeros_like(batch.row)
    revealed = chain.entry(batch, stage)
    order, step = torch.full_like(batch.tokens, -1), 0
    running = torch.arange(len(batch))
    with evaluating(model):
        while len(running):
            clean, seen = batch[running], revealed[running]
            hidden = MaskedBatch(clean, clean.maskable & ~seen, None, None)
            scores = model(hidden, needs=masking.needs).scores.to("cpu")
            now, stage[running], _ = chain.advance(clean, seen, stage[running], scores)
            order[running] = order[running].masked_fill(now & ~seen, step)
            revealed[running] = now
            running, step = running[~chain.ended(clean, now, stage[running])], step + 1
    return order.masked_fill(batch.maskable & ~revealed, step).to(device)


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """Kendall's tau-b between two orders of the same rows, over the positions that both chose.

    Args:
        first: [N, L] steps, as `chain_order` or `Generation.step` give them; below 0 where given.
        second: likewise.

    Raises:
        ValueError: where no row has two positions in order.
    """
    both = (first >= 0) & (second >= 0)
    taus = []
    for a, b, chosen in zip(first.cpu().numpy(), second.cpu().numpy(), both.cpu().numpy(), strict=True):
        a, b = a[chosen], b[chosen]
        if len(np.unique(a)) > 1 and len(np.unique(b)) > 1:
            found: Any = scipy.stats.kendalltau(a, b, variant="b")  # its type is private
            taus.append(float(found.statistic))
    require(len(taus) > 0, "the orders cannot be compared: no row has two positions revealed one after the other")
    if len(taus) == 1:
        return Agreement(taus[0], math.nan, math.nan, 1)
    found = ratio(torch.tensor(taus, dtype=torch.float64), torch.ones(len(taus)))
    return Agreement(found.value, found.low, found.high, len(taus))


def order_over_training(
    run: str | Path,
    dataset: Dataset | None = None,
    *,
    masking: ProgressiveUnmasking | None = None,
    rows: int = 64,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare the chain of every checkpoint of a run with the order in which its final model decodes.

    The chain is driven by a checkpoint's weights as they were, as in training; the final model is the averaged
    one where there is one, and decodes one position a step by the chain's policy.

    Args:
        run: folder of a run; train it with `keep_checkpoints` large enough.
        dataset: rows to follow; by default those that the run's data holds out.
        masking: of the chain; by default the run's.
        rows: how many rows, from the first.
        seed: of the chain's noise.

    Returns:
        One record for each checkpoint, in order: "step", and the fields of `Agreement`.

    Raises:
        ValueError: for a folder without a run or whole checkpoints, or a run without a chain and no `masking`.
    """
    run = Path(run)
    saved = read_config(run)
    if saved is None:
        raise ValueError(f"{run} is no run's folder: there is no config.json")
    if masking is None:
        masking = from_json(saved["run"]["masking"])
        if not isinstance(masking, ProgressiveUnmasking):
            raise ValueError(f"the run in {run} has no chain ({masking}): say which by `masking`")
    if dataset is None:
        told = "data" in saved["run"]
        require(told, f"the run in {run} does not say what its data are: give the rows by `dataset`")
        dataset = cast(Dataset, from_json(saved["run"]["data"]).held_out())
    folders = checkpoint.saved(checkpoint.root_of(run))
    require(len(folders) > 0, f"the run in {run} has no checkpoint yet")
    steps = [checkpoint.check(folder)["step"] for folder in folders]
    batch = RowStream(dataset).rows(torch.arange(min(rows, len(dataset))))
    final = checkpoint.weights_of(folders[-1])
    decoded = generate(MaskedDiffusionLM.from_pretrained(final), batch, Decoding(policy=masking.policy), seed=seed)
    records = []
    for step, folder in zip(steps, folders, strict=True):
        model = MaskedDiffusionLM.from_pretrained(folder / "model")
        found = agreement(chain_order(model, batch, masking, seed=seed, at=step), decoded.step)
        records.append({"step": step, **asdict(found)})
    return records

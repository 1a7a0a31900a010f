"""A step's rows in parts that fit, and their outputs as those of the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, Scores
from unmask.models.denoiser import MaskedOutput


def micro_batches(batch: MaskedBatch, size: int, every: bool = False) -> Iterator[tuple[Tensor, MaskedBatch]]:
    """Divide a step's rows in the order of their length, each part cut to its longest row.

    So less padding is computed, and nothing else changes. The parts are as many on every rank.

    Args:
        batch: the rows of the step.
        size: rows of a part before those without a mask are left out.
        every: leave none out.

    Yields:
        Numbers of the part's rows in the batch, [N], and the part.
    """
    place = torch.arange(1, batch.clean.length + 1, device=batch.masked.device)
    lengths = (batch.clean.attention * place).amax(1)
    for rows in lengths.argsort(stable=True).split(size):
        run = rows if every else rows[batch.masked[rows].any(1)]
        # A rank without any mask takes part all the same, with weight zero: others wait for its gradient.
        run = run if len(run) else rows[:1]
        length = int(lengths[run[-1]])
        yield run, batch[run].map(lambda x, to=length: x[:, :to] if x.dim() == 2 else x)


def joined(
    runs: list[Tensor], outputs: list[MaskedOutput], shape: torch.Size
) -> tuple[Tensor, Scores | None, Tensor | None, Tensor | None, Tensor | None]:
    """Nll, scores, gradient lengths and factors of the step's parts, each [B, L] on the CPU: 0 elsewhere.

    And what the loss holds besides, Σ balance, a scalar there.

    Args:
        runs: numbers of each part's rows.
        outputs: of each part.
        shape: B and L.
    """
    rows, output = torch.cat(runs), MaskedOutput.concatenated(outputs)

    def put(value: Tensor) -> Tensor:
        whole = torch.zeros(shape, dtype=value.dtype)
        whole[rows, : value.shape[1]] = value.detach().cpu()
        return whole

    scores, gradient = output.scores, output.gradient
    return (
        put(output.nll),
        None if scores is None else scores.map(put),
        None if gradient is None else put(gradient),
        None if output.factor is None else put(output.factor),
        None if output.balance is None else output.balance.sum().cpu(),
    )

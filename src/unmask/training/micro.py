"""A step's rows in parts that fit, and their outputs as those of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.batch import MaskedBatch, Scores
from unmask.config import require
from unmask.distributed import sum_over_ranks
from unmask.models.output import MaskedOutput
from unmask.objectives import Objective
from unmask.training.later import Later


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


def weighed(objective: Objective, batch: MaskedBatch, ranks: int) -> tuple[Tensor, Tensor]:
    """Weights [B, L] of this rank's tokens, and Z of a step over all ranks, on the host.

    A batch may be without any mask at all: its loss and gradient are zero, whatever Z is, so Z is kept above 0.

    Raises:
        ValueError: for weights of another shape, or a normaliser that is no tensor of one number.
    """
    weights, z = objective.weights(batch), objective.normaliser(batch)
    shape = getattr(weights, "shape", type(weights).__name__)
    require(
        isinstance(weights, Tensor) and shape == batch.masked.shape,
        f"{objective}: weights must be a tensor [B, L] as `masked` is, {list(batch.masked.shape)}, got {shape}",
    )
    require(
        isinstance(z, Tensor) and z.dim() == 0, f"{objective}: normaliser must be a tensor of one number, got {z!r}"
    )
    return weights, sum_over_ranks(ranks, z).clamp(min=1e-30)


@dataclass(frozen=True)
class StepRows:
    """What a step's forwards found of its rows, each [B, L] on the CPU; 0 where nothing is masked.

    Attributes:
        nll: nats of the masked tokens.
        scores: the statistics asked for, or None.
        gradient: as of `MaskedOutput`, or None.
        factor: as of `MaskedOutput`, or None.
        balance: Σ of the parts' `MaskedOutput.balance`, or None.
    """

    nll: Tensor
    scores: Scores | None
    gradient: Tensor | None
    factor: Tensor | None
    balance: float | None


class StepOutputs:
    """The outputs of a step's parts, on their way to the host in one copy.

    Args:
        runs: numbers of each part's rows.
        outputs: of each part.
        batch: the rows of the step.
    """

    def __init__(self, runs: list[Tensor], outputs: list[MaskedOutput], batch: MaskedBatch) -> None:
        self._runs, self._batch, whole = torch.cat(runs), batch, MaskedOutput.concatenated(outputs)
        self._loss = whole.loss.detach()
        kinds = {"nll": whole.nll, "gradient": whole.gradient, "factor": whole.factor}
        scores = {} if whole.scores is None else vars(whole.scores)
        self._scored = whole.scores is not None
        kept = {name: value for name, value in {**scores, **kinds}.items() if value is not None}
        self._names, self._late = list(kept), Later(torch.stack([value.detach() for value in kept.values()]))
        self._balance = None if whole.balance is None else Later(whole.balance.sum())
        self._found: StepRows | None = None

    @property
    def loss(self) -> Tensor:
        """Scalar on the device, the sum of the parts', without a gradient."""
        return self._loss.sum()

    def scores(self) -> Scores | None:
        """Those that the process asked for; the host waits for the forwards.

        Raises:
            FloatingPointError: where a loss is not finite, and so no process should learn of it; names the rows.
        """
        bad = self.broken()
        if bad.any():
            raise FloatingPointError(
                f"the loss is not finite in rows {self._batch.clean.row[bad].tolist()[:16]} of the data set: look at "
                "these rows and at the model, lower the learning rate or train in fp32"
            )
        return self.read().scores

    def broken(self) -> Tensor:
        """[B] bool, rows whose loss is not finite; the host waits for the forwards."""
        return ~self.read().nll.isfinite().all(1)

    def read(self) -> StepRows:
        """All that was found."""
        if self._found is None:
            values = self._late.read()
            whole = values.new_zeros(len(values), *self._batch.masked.shape)
            whole[:, self._runs, : values.shape[2]] = values
            found = dict(zip(self._names, whole, strict=True))
            gradient, factor = found.pop("gradient", None), found.pop("factor", None)
            scores = Scores(**found) if self._scored else None
            balance = None if self._balance is None else float(self._balance.read())
            self._found = StepRows(found["nll"], scores, gradient, factor, balance)
        return self._found


def forward_backward(
    batch: MaskedBatch,
    weights: Tensor,
    size: int,
    forward: Callable[[MaskedBatch, Tensor], MaskedOutput],
    backward: Callable[[Tensor], object],
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    every: bool = False,
) -> StepOutputs:
    """Leave the gradient of a step's loss in the weights.

    Args:
        batch: the rows of the step.
        weights: [B, L] of their tokens' losses.
        size: rows of a part.
        forward: of a part, under weights of its own.
        backward: of a part's loss.
        waiting: around all parts but the last, whose gradients the ranks exchange with the last one's.
        every: leave out no row without a mask.
    """
    parts = list(micro_batches(batch, size, every))
    outputs = []
    for run, part in parts[:-1]:
        with waiting():
            outputs.append(forward(part, weights[run, : part.clean.length]))
            backward(outputs[-1].loss)
    run, part = parts[-1]
    outputs.append(forward(part, weights[run, : part.clean.length]))
    found = StepOutputs([run for run, _ in parts], outputs, batch)  # its copy need not wait for the backward
    backward(outputs[-1].loss)
    return found

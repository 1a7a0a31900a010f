"""A training step for a loop of your own: one call that does what the `Trainer` does between two updates.

step = TrainingStep(ProgressiveUnmasking(), rows, batch_size=32)
for _ in range(1000):
    loss = step(model)
    optimizer.step()
    optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from unmask.batch import MaskedBatch
from unmask.config import require
from unmask.data.importance import RowImportance
from unmask.data.streamed import rows_of
from unmask.distributed import is_sharded, place_among_ranks
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.output import MaskedOutput
from unmask.objectives import Objective, RowMean
from unmask.processes import Masking
from unmask.processes.refit import refit_time
from unmask.training.checks import check_measured
from unmask.training.micro import forward_backward, weighed


class TrainingStep:
    """Draw a step's rows, leave the gradient of their loss in the weights, tell the process what the model thought.

    A time distribution that learns is fitted anew where that is due. The optimiser, its schedule, clipping, precision
    (autocast around the call) and checkpoints are the loop's own. Under torch.distributed the ranks share a step.

    Args:
        masking: config of the forward process.
        dataset: rows with `tokens` and `maskable`; it may be streamed.
        batch_size: rows (forwards) of a step over all ranks together.
        objective: weights of the masked tokens' losses; RowMean by default.
        micro_batch_size: rows of one forward on this rank; by default all of the step's. Nothing else depends on it.
        held_out: rows for time distributions that measure the model (`PPOTS`): others than those that evaluate it.
        importance: draw rows in proportion to their loss, and weigh them back.
        seed: of rows, rates and masks.

    Attributes:
        process: that is running; its `state_dict` is what a checkpoint must hold besides model and optimiser.
        learnt: what the last refit found, for a log; empty before one.

    Raises:
        ValueError: for an objective that refuses the masking, rows that are lacking, or a batch that does not divide.
    """

    @kinds_checked
    def __init__(
        self,
        masking: Masking,
        dataset: Dataset | IterableDataset,
        batch_size: int,
        *,
        objective: Objective | None = None,
        micro_batch_size: int | None = None,
        held_out: Dataset | None = None,
        importance: RowImportance | None = None,
        seed: int = 0,
    ) -> None:
        self.masking, self.objective, self.held_out, self.seed = masking, objective or RowMean(), held_out, seed
        self.objective.check(masking)
        require(
            micro_batch_size is None or micro_batch_size >= 1,
            f"micro_batch_size must be at least 1, got {micro_batch_size}",
        )
        self.micro_batch_size = micro_batch_size
        self.rank, self.ranks = place_among_ranks()
        self._dataset = dataset
        self._model: MaskedDiffusionLM | None = None  # known from the first call on
        self._unchecked: list[tuple[Dataset, int]] = []
        rows = rows_of(dataset, seed, self.rank, self.ranks, importance, self._check_block)
        self.process = masking.start(rows, batch_size, seed)
        check_measured(masking, self.process, held_out, sharded=False)
        self.learnt: dict[str, Any] = {}

    def __call__(self, model: nn.Module, backward: Callable[[Tensor], object] = Tensor.backward) -> Tensor:
        """Add the step's gradient to the weights' `.grad`.

        Args:
            model: a `MaskedDiffusionLM`, or one inside DistributedDataParallel, or sharded by FSDP2. On several ranks
                without either, the gradients are to be summed over the ranks.
            backward: called with the loss of each micro-batch: `accelerator.backward`, say, or one that scales it.
                accelerate divides the loss by its `gradient_accumulation_steps`, which are 1 for this: the step
                accumulates by `micro_batch_size`.

        Returns:
            The loss of this rank's rows, detached; summed over the ranks it is the step's.

        Raises:
            TypeError: for another model.
            ValueError: for one that cannot train on the rows: at the first call, of a stream where a row is read; or
                where torch.distributed was started after the step was made.
            FloatingPointError: where a process that learns from losses or scores met a loss that is not finite; names
                the rows. Under any other the loss is returned as it is: nothing here waits for it.
        """
        denoiser = self._denoiser_in(model)
        fit = refit_time(self.process, self.masking, denoiser, self.held_out, self.seed, self.rank, self.ranks)
        self.learnt = fit or self.learnt
        batch = self.process.draw()
        # What wraps or shards the model averages gradients over the ranks, and the loss is a sum over them.
        wrapped = model is not denoiser
        averaged = self.ranks if wrapped or is_sharded(denoiser) else 1
        weights, z = weighed(self.objective, batch, self.ranks)
        weights = weights * (averaged / z).float()

        def forward(part: MaskedBatch, own: Tensor) -> MaskedOutput:
            return model(denoiser.prepare(part, own), needs=self.process.needs, objective=self.objective)

        def outside_autocast(loss: Tensor) -> None:
            with torch.autocast(loss.device.type, enabled=False):
                backward(loss)

        waiting = getattr(model, "no_sync", nullcontext) if wrapped else nullcontext
        size = self.micro_batch_size or len(batch)
        outputs = forward_backward(batch, weights, size, forward, outside_autocast, waiting)
        if self.process.needs is not None:
            self.process.observe(outputs.scores())
        return outputs.loss / averaged

    def _denoiser_in(self, model: Any) -> MaskedDiffusionLM:
        """The denoiser, looked at once with the rows."""
        inside = getattr(model, "module", model)
        MaskedDiffusionLM.check(inside)
        if self._model is None:
            there = place_among_ranks()
            require(  # else each rank would train on all rows, the same ones
                there == (self.rank, self.ranks),
                f"this step was made as rank {self.rank} of {self.ranks}, and is called as rank {there[0]} of "
                f"{there[1]}: start torch.distributed (init_process_group, Accelerator()) before the step is made",
            )
            inside.check_rows(self._dataset)
            for block, first in self._unchecked:
                inside.check_rows(block, first)
            check_measured(self.masking, self.process, self.held_out, is_sharded(inside))
            self._model, self._unchecked = inside, []
        return inside

    def _check_block(self, block: Dataset, first: int) -> None:
        """Look at a block of a stream; one that is read before the model is known waits for it."""
        if self._model is None:
            self._unchecked.append((block, first))
        else:
            self._model.check_rows(block, first)

    def state_dict(self) -> dict[str, Any]:
        """The process's: a resumed run draws what this one would have drawn."""
        return self.process.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, on as many ranks."""
        self.process.load_state_dict(state)

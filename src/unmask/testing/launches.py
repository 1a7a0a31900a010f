"""What a training step asks of a device: operations, and answers that the host waits for. Counted, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.state import PartialState

from unmask.testing.device import Float32Device
from unmask.training.trainer import Trainer


@dataclass(frozen=True)
class Launches:
    """Of one step.

    Attributes:
        operations: kernels that the device was given.
        model: how many of them the model, the clipping and the optimiser take for the same rows without a trainer.
        parts: forwards, one after another.
        waits: names of the operations that the host waited for.
    """

    operations: int
    model: int
    parts: int
    waits: tuple[str, ...]

    @property
    def masking(self) -> int:
        """Operations beside the model's: masks, weights, loss, scores, diagnostics."""
        return self.operations - self.model


@contextmanager
def counting_device() -> Iterator[Float32Device]:
    """The simulated device, where `Trainer`s made inside of the block find it as they find a GPU."""
    state = PartialState().__dict__
    before = state["device"]
    state["device"] = Float32Device.device
    try:
        with Float32Device() as device:
            yield device
    finally:
        state["device"] = before


def count_launches(trainer: Trainer, device: Float32Device, settled: int = 2) -> Launches:
    """Count a step of a trainer that was made on the device, and that has not trained.

    Args:
        trainer: it logs no figures at the steps that are counted (`log_every`); its optimiser is fused, as on CUDA.
        device: what counts.
        settled: steps before, after which everything that is made once is made.
    """
    trainer.wrapped.train()
    for _ in range(settled):
        trainer._train_step()
        trainer.counters.step += 1
    device.waits.clear()
    device.operations = 0
    trainer._train_step()
    operations, waits = device.operations, tuple(device.waits)

    model, batch = trainer.model, trainer.process.draw()
    prepared = model.prepare(batch, torch.ones_like(batch.masked, dtype=torch.float32)).to(device.device)
    parts = -(-len(batch) // (trainer.config.micro_batch_size or len(batch)))
    device.operations = 0
    for _ in range(parts):  # gradients add up, as in the step
        model(prepared, needs=trainer.process.needs).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.config.clip_norm)
    trainer.optimizer.step()
    return Launches(operations, device.operations, parts, waits)

"""When a run evaluates, saves and ends: by its steps, by the clock, and when a callback or a signal asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from unmask.distributed import gather_rows
from unmask.training.callbacks import Callback
from unmask.training.config import TrainingConfig


class Occasions:
    """Decides after each step; what one rank is asked for, all do after the same step.

    Args:
        config: of the loop.
        callbacks: of this rank.
        ranks: how many there are; each must ask as often as the others.
        saved: the step whose checkpoint the run goes on from; None where it starts.
        clock: seconds.
    """

    def __init__(
        self,
        config: TrainingConfig,
        callbacks: Sequence[Callback],
        ranks: int,
        saved: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.callbacks, self.ranks, self.saved, self._clock = config, callbacks, ranks, saved, clock
        self._saved_at = clock()

    @property
    def spared(self) -> set[int]:
        """Steps whose checkpoints stay, as callbacks ask."""
        return {callback.keep for callback in self.callbacks if callback.keep is not None}

    def stops(self) -> bool:
        """Whether a callback ends the run."""
        return bool(self._most(any(callback.stop is not None for callback in self.callbacks))[0])

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after this step; before the first one it is."""
        return step == 0 or self._due(step, self.config.evaluate_every)

    def evaluates_first(self, step: int, told: bool) -> bool:
        """Whether the model is evaluated before anything else: a run that starts, or whose last evaluation broke off.

        Args:
            step: that the run starts with or goes on from.
            told: whether the log of this rank, if it writes one, has the evaluation after it.
        """
        return self.evaluates(step) and not self._most(told)[0]

    def saves(self, step: int, signal: int) -> tuple[bool, int]:
        """Whether this step is saved; and the number of the signal that ends the run after it, 0 for none.

        Args:
            step: that was just done.
            signal: number of the one that this rank has been sent, 0 for none.
        """
        minutes = self.config.checkpoint_minutes
        late = minutes is not None and self._clock() - self._saved_at > 60 * minutes
        number, asked = self._most(signal, late or step in self.spared)
        return bool(number or asked) or self._due(step, self.config.checkpoint_every), number

    def note_saved(self, step: int) -> None:
        """Its checkpoint is written: the clock begins anew."""
        self.saved, self._saved_at = step, self._clock()

    def _due(self, step: int, every: int | None) -> bool:
        return step == self.config.steps or (every is not None and step % every == 0)

    def _most(self, *asked: int) -> list[int]:
        """The largest of all ranks, number by number."""
        return gather_rows(self.ranks, torch.tensor([list(map(int, asked))]))[0].amax(0).tolist()

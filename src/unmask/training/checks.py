"""What the loop says when numbers are not what they should be."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from torch import Tensor

from unmask.batch import MaskedBatch


def check_start(nll: float, choices: int) -> None:
    """Warn where the first step's loss is far from log V nats a masked token, V the tokens it may be."""
    expected = math.log(choices)
    if nll > 1.25 * expected + 0.1:
        warnings.warn(
            f"the first step's loss is {nll:.2f} nats a masked token, well above log V = {expected:.2f}: "
            "the initial weights are too large, or the labels do not line up with the predictions",
            stacklevel=3,
        )
    elif nll < 0.75 * expected - 0.1:
        warnings.warn(
            f"the first step's loss is {nll:.2f} nats a masked token, well below log V = {expected:.2f}: fine "
            "for a pretrained model; with random weights it means that the answer leaks into the input",
            stacklevel=3,
        )


def not_finite(
    step: int, loss: float, norm: float, batch: MaskedBatch, nll: Tensor, last: Path | None
) -> FloatingPointError:
    """The error that ends a run whose loss or gradient is not finite.

    Args:
        step: steps done.
        loss: of the step.
        norm: of its gradient.
        batch: this rank's rows.
        nll: [B, L] of the step.
        last: newest whole checkpoint.
    """
    bad = ~nll.isfinite().all(1)
    rows = (batch.clean.row[bad] if bad.any() else batch.clean.row).tolist()
    return FloatingPointError(
        f"step {step}: the loss is {loss} and the gradient norm {norm}. "
        f"Rows of the data set {'with a bad loss' if bad.any() else 'in the batch'}: {rows[:16]}. "
        f"The last good checkpoint is {last or 'none: none was written yet'}. "
        "Lower learning_rate, raise warmup_steps, or try --precision fp32"
    )

"""Sizes of rows, models and training that fit a user's data: a fixed rule, a function of the data alone.

- length: the longest row where it has at most `most` tokens, else what 95 of 100 rows fit into, or `most`; rounded up
  to a multiple of 8.
- model: 4 layers, 128 wide; from ten million tokens of training rows on 6 layers, 256 wide.
- batch: as many rows as make 2,048 tokens, a power of two from 8 to 64; 16 for pretrained models.
- steps: ten epochs, but from 500 to 2,000; for pretrained models three, from 100 to 500. A twentieth of them is
  warm-up, and a tenth lies between evaluations.
- learning rate: 2e-3, for the larger model 1e-3, for pretrained models 2e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unmask.parts.models import PretrainedModel, TextModel

LARGER_FROM = 10_000_000
"""Tokens of all training rows from which the larger model is chosen."""


def enough_rows(length: int, batch_size: int | None = None) -> int:
    """Rows from which on more of them change no size: the rows of a stream are counted so far.

    Args:
        length: most tokens of a row.
        batch_size: the user's own. None: chosen, at most 64.
    """
    return max(-(-LARGER_FROM // length), 200 * (batch_size or 64))


def fitting_length(lengths: Sequence[int] | np.ndarray, most: int) -> int:
    """Tokens of a row that fits rows of these lengths [N], their ends included; at most `most`, a multiple of 8."""
    longest = int(np.max(lengths))
    chosen = longest if longest <= most else min(most, int(np.quantile(lengths, 0.95, method="higher")))
    return -(-chosen // 8) * 8


def fitting_model(vocab_size: int, mask_token_id: int, length: int, tokens: int) -> TextModel:
    """A model with random weights for rows of `length` tokens, `tokens` in all.

    Args:
        vocab_size: V, the mask included.
        mask_token_id: the mask token.
        length: most tokens of a row.
        tokens: of all training rows.
    """
    larger: dict[str, Any] = {"layers": 6, "width": 256, "heads": 8} if tokens >= LARGER_FROM else {}
    mask = None if mask_token_id == vocab_size - 1 else mask_token_id
    return TextModel(vocab_size=vocab_size, mask_token_id=mask, positions=length, **larger)


def fitting_steps(
    rows: int,
    length: int,
    model: TextModel | PretrainedModel,
    steps: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Steps, batch, warm-up, evaluations and learning rate, by the names of `TrainingConfig`'s fields.

    Args:
        rows: to train on.
        length: most tokens of a row.
        model: what is trained.
        steps: the user's own. None: chosen.
        batch_size: the user's own. None: chosen.
    """
    pretrained = isinstance(model, PretrainedModel)
    batch_size = batch_size or (16 if pretrained else int(np.clip(2 ** round(np.log2(2048 / length)), 8, 64)))
    epochs, least, most = (3, 100, 500) if pretrained else (10, 500, 2000)
    steps = steps or int(np.clip(-(-epochs * rows // batch_size), least, most))
    return {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": 2e-4 if pretrained else 1e-3 if model.width > 128 else 2e-3,
        "warmup_steps": steps // 20,
        "evaluate_every": max(1, steps // 10),
        "log_every": max(1, min(20, steps // 20)),
    }

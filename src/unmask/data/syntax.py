"""Rows whose prompts are masked too, at their syntax tokens: what SyRM trains on (arXiv 2511.18159)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from unmask.config import require


def with_syntax(rows: Dataset, tokens: Sequence[int]) -> Dataset:
    """Make the prompt's syntax tokens maskable, and mark them in a column `guide`.

    Args:
        rows: with the columns `tokens` and `maskable`, as `prompt_rows` and `chat_rows` make them; other columns go.
        tokens: ids of the syntax tokens: tags, keywords, brackets.

    Returns:
        The rows, where a token that was not maskable and is listed is maskable, and `guide` is 1 at it; 0 elsewhere.

    Raises:
        ValueError: for no token at all, or where no prompt holds one.
    """
    require(len(tokens) > 0, "with_syntax needs the ids of at least one syntax token")
    found = 0

    def marked(batch: dict[str, list]) -> dict[str, list]:
        nonlocal found
        maskable, guide = [], []
        for ids, flags in zip(batch["tokens"], batch["maskable"], strict=True):
            syntax = np.isin(ids, tokens) & ~np.asarray(flags, dtype=bool)
            found += int(syntax.sum())
            maskable.append((syntax | np.asarray(flags, dtype=bool)).tolist())
            guide.append(syntax.astype(float).tolist())
        return {"tokens": batch["tokens"], "maskable": maskable, "guide": guide}

    made = rows.map(marked, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)
    require(found > 0, "no prompt holds any of these tokens: are they ids of this tokenizer?")
    return made

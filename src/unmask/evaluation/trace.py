"""A row unmasked step by step, kept so that people can watch it: what is revealed when, and what is true."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.config import require
from unmask.data.stream import RowStream
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.sampling import Decoding, generate
from unmask.store.files import replace_text

TRACE = "trace.json"


@dataclass(frozen=True, eq=False)
class Example:
    """A row to watch, and how it is decoded.

    Attributes:
        row: one row, unseen in training; what its maskable positions hold is the truth.
        decoding: how.
        word: how a token is written. None: as the run's tokenizer does, or its number.
        columns: tokens of a line, for rows that are boards.
        exact: whether nothing but the truth is right.
        first: position from which the row is shown.
        ends: of a text, as `TextTokenizer.ends`.
    """

    row: TokenBatch
    decoding: Decoding
    word: Callable[[int], str] | None = None
    columns: int | None = None
    exact: bool = False
    first: int = 0
    ends: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """The decoding of one row.

    Attributes:
        start: [L] what stands at each position before the first step; None where it is masked.
        steps: for each step the positions that it changed and what stands there now; None where it was masked again.
        truth: [L] what the row held.
        columns: tokens of a line, for rows that are boards.
        exact: whether nothing but the truth is right.
    """

    start: list[str | None]
    steps: list[list[tuple[int, str | None]]]
    truth: list[str]
    columns: int | None = None
    exact: bool = False

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        replace_text(folder / TRACE, json.dumps(asdict(self)) + "\n")


def read_trace(folder: Path) -> dict[str, Any] | None:
    """The fields of the trace that a run has left; None for a run without."""
    path = folder / TRACE
    return json.loads(path.read_text()) if path.is_file() else None


def example_of(dataset: Dataset, decoding: Decoding, **options: Any) -> Example:
    """The row with the most to unmask, the first of several.

    Of a row in which nothing is given the first quarter is, so that models are seen at the same task.

    Args:
        dataset: rows with the columns `tokens` and `maskable`, at least one.
        decoding: how it is decoded.
        **options: other attributes of the `Example`.
    """
    require(len(dataset) > 0, "there is no row to show")
    counts = [sum(flags) for flags in dataset["maskable"]]
    row = RowStream(dataset).rows(torch.tensor([counts.index(max(counts))]))
    if bool(row.maskable.all()):
        row = replace(row, maskable=row.maskable & (torch.arange(row.length) >= row.length // 4))
    return Example(row, decoding, **options)


def trace_of(model: MaskedDiffusionLM, example: Example, seed: int = 0) -> Trace:
    """Decode an example; every rank must call it where weights are sharded.

    Args:
        model: the denoiser, in the ambient autocast mode.
        example: what to decode, with a `word`.
        seed: of the decoding's noise.
    """
    row, word, first = example.row, example.word or str, example.first
    shown = torch.where(row.maskable, -1, row.tokens)[0]  # -1: masked
    steps: list[list[tuple[int, str | None]]] = []
    start = _words(shown[first:], word)

    def on_step(step: int, tokens: Tensor, masked: Tensor) -> None:
        now = tokens.masked_fill(masked, -1)[0]
        at = (now != shown).nonzero()[:, 0]
        steps.append(list(zip((at - first).tolist(), _words(now[at], word), strict=True)))
        shown.copy_(now)

    there = row.to(model.device)
    generate(model, there, example.decoding, seed=seed, on_step=on_step, **example.ends)
    truth = [word(token) for token in row.tokens[0, first:].tolist()]
    return Trace(start, steps, truth, example.columns, example.exact)


def _words(tokens: Tensor, word: Callable[[int], str]) -> list[str | None]:
    return [None if token < 0 else word(token) for token in tokens.tolist()]

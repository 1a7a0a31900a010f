"""What some methods need of a run before it starts: the ids of tokens that they name, numbers that its rows carry.

`Delimiters` and `SyRM` may name tokens by their text, which the run's tokenizer knows. `GIFT` reads entropies of the
model that training starts from, `SyRM` the mark of its prompts' syntax: each from the column `guide`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from datasets import Dataset, IterableDataset

from unmask.data import with_syntax
from unmask.data.checks import shared_rows
from unmask.data.tokenizers import TextTokenizer
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.objectives import Objective
from unmask.processes import Masking
from unmask.processes.guides import add_entropies
from unmask.reweighted import SyRM
from unmask.token_rates import GIFT, Delimiters, known_tokens

Part = TypeVar("Part")


def parts_of(part: Any) -> Iterator[Any]:
    """A config and all configs inside it."""
    if is_dataclass(part) and not isinstance(part, type):
        yield part
        for field in fields(part):
            yield from parts_of(getattr(part, field.name))


def looked_up(part: Part, tokenizer: TextTokenizer | None) -> Part:
    """A masking or objective, or a tuple of some, with the ids of the tokens that they name by their text.

    Raises:
        ValueError: for rows that are no text, or a text that their tokenizer has no token for.
    """
    if type(part) is tuple:
        return type(part)(looked_up(each, tokenizer) for each in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changes = {f.name: looked_up(getattr(part, f.name), tokenizer) for f in fields(part) if f.init}
    if isinstance(part, Delimiters | SyRM) and not all(isinstance(token, int) for token in part.tokens):
        if tokenizer is None:
            raise ValueError(f"{part} names tokens by their text, and the run's rows are no text: give ids")
        changes["tokens"] = tokenizer.named(part.tokens)
    return replace(part, **changes)


def check_guide(masking: Masking, objective: Objective, data: Any) -> None:
    """Refuse what reads a column `guide` where rows cannot be given one.

    Args:
        masking: of the run.
        objective: of the run.
        data: its config. Where it is streamed, its first row is looked at.

    Raises:
        ValueError: where two want the column, or rows without it are streamed.
    """
    gift, syntax = _readers(masking, objective)
    if gift and syntax:
        raise ValueError("GIFT and SyRM both read the column `guide`, and a data set has one")
    if (gift or syntax) and getattr(data, "stream", False) and "guide" not in next(iter(data.load()), ()):
        raise ValueError(
            "GIFT and SyRM read a column `guide` that is made before training, of rows that are kept: leave out "
            "--data.stream"
        )


def with_guide(
    masking: Masking,
    objective: Objective,
    rows: Dataset | IterableDataset,
    model: MaskedDiffusionLM,
    device: torch.device,
) -> Dataset | IterableDataset:
    """The rows with the column `guide` that masking or objective read, where they read one and the rows have none.

    Args:
        masking: with the ids of all tokens.
        objective: the same.
        rows: to train on; `check_guide` let their data pass.
        model: the one that training starts from; for entropies it is moved to the device.
        device: of this process.

    Raises:
        ValueError: where no prompt holds any syntax.
    """
    gift, syntax = _readers(masking, objective)
    if not (gift or syntax) or isinstance(rows, IterableDataset) or "guide" in rows.column_names:
        return rows
    if gift:
        return add_entropies(model.to(device), rows)
    return with_syntax(rows, known_tokens(syntax[0]))


def warn_of_shared(held_out: Dataset, rows: Dataset | IterableDataset) -> None:
    """Warn of held-out rows that are trained on too; a stream is not read for it."""
    if isinstance(rows, Dataset) and (count := shared_rows(held_out, rows)):
        warnings.warn(
            f"{count:,} of the {len(held_out):,} held-out rows are trained on too: what is measured on them says "
            "little of new rows. Hold out others (--data.held-out-source)",
            stacklevel=2,
        )


def _readers(masking: Masking, objective: Objective) -> tuple[list[GIFT], list[SyRM]]:
    """What of a run reads the column `guide`."""
    parts = [*parts_of(masking), *parts_of(objective)]
    return [p for p in parts if isinstance(p, GIFT)], [p for p in parts if isinstance(p, SyRM)]

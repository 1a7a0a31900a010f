"""Data of the user's own, without code. What is not given is chosen from the data: `unmask.parts.sizes` has the rule.

Called without data, they give the settings that `--help` shows; such a run is refused before it starts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from datasets import Dataset

from unmask.parts import (
    HeldOutAnswers,
    HeldOutLikelihood,
    HeldOutSequences,
    PretrainedModel,
    PromptData,
    RowsOnDisk,
    SequenceData,
    TextData,
    TextModel,
    named_masking,
)
from unmask.parts.sizes import enough_rows, fitting_model, fitting_steps
from unmask.runs.config import RunConfig
from unmask.training import TrainingConfig


@runtime_checkable
class Fitted(Protocol):
    """Data with settings that are chosen from them."""

    def check(self) -> None:
        """Raise ValueError where nothing can be held out."""
        ...

    def fitted(self) -> Any:
        """The same with these settings chosen."""
        ...


def sft(
    masking: str = "standard",
    data: PromptData | None = None,
    pretrained: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> RunConfig:
    """Learn to answer prompts: two columns of a table of yours, from scratch or from a pretrained model.

    Args:
        masking: a name of `unmask.parts.named_masking`.
        data: where prompts and responses are.
        pretrained: name or folder of the model to start from. None: random weights.
        steps: of training. None: chosen from the data.
        batch_size: rows of a step. None: chosen from the data.
    """
    data = data or PromptData()
    if pretrained is not None and data.vocabulary == "auto":
        data = replace(data, vocabulary=pretrained)
    return _run("sft", masking, data, pretrained, steps, batch_size, evaluation=HeldOutAnswers())


def text(
    masking: str = "standard",
    data: TextData | None = None,
    pretrained: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> RunConfig:
    """Learn prose: text files, a folder of them, or a column of a table of yours.

    Args:
        masking: a name of `unmask.parts.named_masking`.
        data: where the texts are.
        pretrained: name or folder of the model to start from. None: random weights.
        steps: of training. None: chosen from the data.
        batch_size: rows of a step. None: chosen from the data.
    """
    data = data or TextData(source=(), vocabulary="auto", divided="auto")
    if pretrained is not None and data.vocabulary == "auto":
        data = replace(data, vocabulary=pretrained, first_given=True)
    return _run("text", masking, data, pretrained, steps, batch_size, evaluation=HeldOutLikelihood())


def sequences(
    masking: str = "standard",
    data: SequenceData | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> RunConfig:
    """Learn sequences of letters: proteins, DNA, SMILES; FASTA files or one a line.

    Args:
        masking: a name of `unmask.parts.named_masking`.
        data: where the sequences are.
        steps: of training. None: chosen from the data.
        batch_size: rows of a step. None: chosen from the data.
    """
    return _run("sequences", masking, data or SequenceData(), None, steps, batch_size, evaluation=HeldOutSequences())


def rows(
    masking: str = "standard", data: RowsOnDisk | None = None, steps: int | None = None, batch_size: int | None = None
) -> RunConfig:
    """Learn rows of tokens that you have made: any data set with the columns tokens and maskable.

    Args:
        masking: a name of `unmask.parts.named_masking`.
        data: where the rows are.
        steps: of training. None: chosen from the data.
        batch_size: rows of a step. None: chosen from the data.
    """
    data = data or RowsOnDisk(divided=True)
    return _run("rows", masking, data, None, steps, batch_size, evaluation=HeldOutLikelihood())


def _run(
    recipe: str,
    masking: str,
    data: Any,
    pretrained: str | None,
    steps: int | None,
    batch_size: int | None,
    **parts: Any,
) -> RunConfig:
    """The run, its sizes chosen from the data where some are named."""
    model, training = TextModel() if pretrained is None else PretrainedModel(pretrained), {}
    if data.source:
        if isinstance(data, Fitted):
            data = data.fitted()
            data.check()
        vocabulary, length, count = _extent(data, batch_size)
        if isinstance(model, TextModel):
            model = fitting_model(*vocabulary, length, count * length)
        training = fitting_steps(count, length, model, steps, batch_size)
    return RunConfig(recipe, data, model, **named_masking(masking), training=TrainingConfig(**training), **parts)


def _extent(data: Any, batch_size: int | None) -> tuple[tuple[int, int], int, int]:
    """V and the mask token, tokens of the longest row, and how many rows are trained on."""
    if isinstance(data, RowsOnDisk):  # the mask is one more token than the rows have
        found = data.extent
        return (found.largest + 2, found.largest + 1), found.longest, found.rows
    made, tokenizer = data.load(), data.tokenizer()
    length = getattr(data, "length", None) or max(map(len, made["tokens"]))
    count = len(made) if isinstance(made, Dataset) else _counted(data, enough_rows(length, batch_size))
    return (tokenizer.vocab_size, tokenizer.mask_token_id), length, count


@lru_cache(maxsize=1)
def _counted(data: TextData, most: int) -> int:
    """Rows of streamed data, at most so many; each arm of a comparison asks."""
    return sum(1 for _ in islice(data.load(), most))

"""Prompts and responses of a user's own: two columns of a table, or templates over its columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from unmask.config import positive_int
from unmask.data import TextTokenizer, load_documents, prompt_rows
from unmask.data.beginnings import Beginning
from unmask.data.columns import columns_named_by
from unmask.data.documents import Split, belongs, read_documents
from unmask.data.endings import Ending
from unmask.data.supervised import as_prompt, template_columns
from unmask.parts.once import once
from unmask.parts.places import found_from
from unmask.parts.sizes import fitting_length
from unmask.parts.text import (
    LEARNT,
    SAVED,
    Files,
    check_parts,
    check_source,
    check_vocabulary,
    files_found_from,
    fitting_vocabulary,
    learnt_tokenizer,
    pretrained_tokenizer,
    spread,
)


@dataclass(frozen=True)
class PromptData:
    """Rows whose prompt is given and whose response is learnt."""

    source: Files = ()
    """A table (.csv, .tsv, .jsonl, .json, .parquet), a folder of `Dataset.save_to_disk`, or hub:NAME."""
    held_out_source: Files | None = None
    """The same, to hold out. None: one in ten rows of `source`, by the content of the prompt, and one in ten more is
    left for tests (`AnswerTask`), neither trained on nor evaluated along the way."""
    prompt: str = "prompt"
    """The column of prompts, which a line break follows; or a template with columns in braces."""
    response: str = "response"
    """The column of what is learnt, or a template."""
    vocabulary: str = "auto"
    """characters: all that the training rows have; bpe: byte pairs learnt from them; auto: characters for less than a
    million of them, else bpe; saved:FOLDER is that of a run; or name or folder of a pretrained tokenizer."""
    vocab_size: int = 4096
    """Tokens of bpe."""
    mask_token: str | None = None
    """Of a pretrained tokenizer: its mask token, added where it has none; as the model's."""
    end_token: str | None = None
    """Of a pretrained tokenizer that names none, such as BERT's: which of its tokens ends a text, [SEP] say."""
    length: int | None = None
    """Most tokens of a row; longer ones are left out. None: chosen from the rows, at most 512."""
    beginning: Beginning = "tokenizer"
    """What stands before every prompt, given: as a pretrained tokenizer does itself, none, or its bos token."""
    ending: Ending = "eos_as_padding"
    """What follows a response, and whether it is learnt. By default end-of-text tokens fill the row, so that the
    model learns how long responses are."""
    cache: str | None = None
    """Folder to keep the tokenized rows in. None: in memory."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over those that are held out."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "held_out_rows"):
            positive_int(name, getattr(self, name))
        if self.length is not None:
            positive_int("length", self.length, least=2)
        check_vocabulary(self.vocabulary, self.beginning)

    @property
    def templates(self) -> tuple[str, str]:
        """Of prompt and response."""
        prompt, response = (text if "{" in text else f"{{{text}}}" for text in (self.prompt, self.response))
        return (prompt if "{" in self.prompt else f"{prompt}\n"), response

    @property
    def columns(self) -> tuple[str, ...]:
        """That are read; the first decides what is held out."""
        return tuple(dict.fromkeys(name for template in self.templates for name in template_columns(template)))

    def asked(self, question: str) -> str:
        """A question as the rows' prompts have it; ValueError where these are of several columns."""
        return as_prompt(question, self.templates[0])

    @columns_named_by("prompt", "response")
    def fitted(self) -> PromptData:
        """The same with vocabulary and length chosen from the training rows, where they are not given."""
        data = self
        if data.vocabulary == "auto":
            check_source(data.source)
            data = replace(data, vocabulary=fitting_vocabulary(data._texts))
        if data.length is None:
            check_source(data.source)
            tokens = list(map(len, data.tokenizer().encode_all(data._texts)))
            first = len(data.tokenizer().prefix)
            both = [first + given + learnt + 1 for given, learnt in zip(tokens[::2], tokens[1::2], strict=True)]
            data = replace(data, length=fitting_length(both, most=512))
        return data

    @once
    def tokenizer(self) -> TextTokenizer:
        """What makes the tokens; it is learnt, or loaded, once."""
        if self.vocabulary not in LEARNT:
            return pretrained_tokenizer(self.vocabulary, self.mask_token, self.end_token, self.beginning)
        vocabulary = fitting_vocabulary(self._texts) if self.vocabulary == "auto" else self.vocabulary
        return learnt_tokenizer(vocabulary, self._texts, self.vocab_size)

    def with_tokenizer(self, folder: Path) -> PromptData:
        """The same rows by a tokenizer that a run has saved."""
        return replace(self, vocabulary=f"{SAVED}{folder}", mask_token=None, end_token=None)

    def found_from(self, folder: Path) -> PromptData:
        """The same rows, with files and tokenizer looked for in a folder too."""
        source, apart = (files_found_from(folder, files) for files in (self.source, self.held_out_source))
        vocabulary = self.vocabulary if self.vocabulary in LEARNT else found_from(folder, self.vocabulary)
        return replace(self, source=source, held_out_source=apart, vocabulary=vocabulary)

    @columns_named_by("prompt", "response")
    def check(self) -> None:
        """Raise ValueError where too few rows are held out, or a file to hold out is trained on too."""
        check_source(self.source)
        check_parts(self.source, self.held_out_source, self.columns, least=2)  # an interval needs two

    @once
    def load(self) -> Dataset:
        """Rows of the training part: `tokens` and `maskable`."""
        return self._rows(self._training)

    @once
    def held_out(self) -> Dataset:
        """Rows that are not trained on."""
        apart = self.held_out_source
        documents = self._documents(self.source, "validation") if apart is None else self._documents(apart, "all")
        return spread(self._rows(documents), self.held_out_rows)

    def left_for_tests(self) -> int:
        """How many rows of `source` are neither trained on nor held out."""
        if self.held_out_source is not None:
            return 0
        return sum(belongs(row, "test", self.columns) for row in read_documents(self.source, "all", self.columns))

    @cached_property
    def _training(self) -> Dataset:
        return self._documents(self.source, "train" if self.held_out_source is None else "all")

    @property
    def _texts(self) -> list[str]:
        """Prompt and response of each training row in turn."""
        rows = [{name: value or "" for name, value in row.items()} for row in self._training.to_list()]
        return [template.format_map(row) for row in rows for template in self.templates]

    def _documents(self, source: Files, split: Split) -> Dataset:
        """The columns, as text: numbers are written out."""
        found = load_documents(source, split, self.columns).select_columns(list(self.columns))
        return Dataset.from_list([{k: _written(k, v) for k, v in row.items()} for row in found.to_list()])

    def _rows(self, documents: Dataset) -> Dataset:
        prompt, response = self.templates
        given: dict[str, Any] = {"prompt": prompt, "response": response, "ending": self.ending, "cache": self.cache}
        length = self.length or self.fitted().length
        assert length is not None
        return prompt_rows(documents, self.tokenizer(), length=length, **given)


def _written(column: str, value: Any) -> str | None:
    """A cell as text; ValueError for one that holds several values."""
    if isinstance(value, list | dict):
        raise ValueError(f"column {column!r} holds {type(value).__name__}s, not text: {str(value)[:60]}")
    return value if isinstance(value, str | None) else str(value)

"""Text as rows: State of the Union addresses, or files of your own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from datasets import Dataset, IterableDataset

from unmask.config import positive_int, require
from unmask.data import (
    TextTokenizer,
    bpe_tokenizer,
    character_tokenizer,
    load_text,
    stream_text,
    tokenize,
    tokenize_stream,
)
from unmask.data.beginnings import Beginning
from unmask.data.columns import columns_named_by
from unmask.data.documents import Split, belongs, files_of, read_documents
from unmask.data.endings import Ending
from unmask.data.passages import passages
from unmask.data.streamed import at_hand
from unmask.data.text import Packing
from unmask.models.pretrained import load_tokenizer, located
from unmask.parts.once import once
from unmask.parts.places import found_from

Files = str | tuple[str, ...]
LEARNT = ("auto", "letters", "characters", "bpe")  # vocabularies that come from the texts, or from nowhere
FEW_DOCUMENTS = 30
SAVED = "saved:"  # before the folder of a tokenizer that a run has saved


@dataclass(frozen=True)
class TextData:
    """Prose in rows of one length; whole documents are held out."""

    source: Files = "sotu"
    """sotu (State of the Union addresses, which come with the package), or text files, .jsonl files, folders of them,
    tables (.csv, .tsv, .json, .parquet), saved data sets, hub:NAME."""
    held_out_source: Files | None = None
    """Files to hold out. None: one in ten documents of `source`, by their content (a .txt file is one document), and
    one in ten more is left for tests."""
    column: str = "text"
    """Of .jsonl files and tables: the column of texts."""
    divided: Literal["auto", "documents", "passages"] = "documents"
    """What is held out as a whole: documents, or passages of 2,000 characters. auto: passages where there are fewer
    than 30 documents."""
    vocabulary: str = "letters"
    """letters: a to z and the space; characters: all that the training texts have; bpe: byte pairs learnt from them;
    auto: characters for less than a million of them, else bpe; saved:FOLDER is that of a run, in a checkpoint's
    model; or name or folder of a pretrained tokenizer."""
    vocab_size: int = 4096
    """Tokens of bpe."""
    mask_token: str | None = None
    """Of a pretrained tokenizer: its mask token, added where it has none; as the model's."""
    end_token: str | None = None
    """Of a pretrained tokenizer that names none, such as BERT's: which of its tokens ends a text, [SEP] say."""
    length: int = 128
    """Tokens of a row."""
    packing: Packing = "packed"
    """packed: texts joined and cut; apart: whole texts in a row, none of which sees another; sentence, document: a
    row of each."""
    beginning: Beginning = "tokenizer"
    """What stands before every text, given: as a pretrained tokenizer does itself, none, or its bos token."""
    ending: Ending = "trained"
    """What marks the end of a text, and whether it is learnt."""
    first_given: bool = False
    """The first token of every row is never masked: for shifted models, which cannot predict it."""
    cache: str | None = None
    """Folder to keep the tokenized rows in. None: in memory."""
    stream: bool = False
    """Keep no rows: every epoch reads and tokenizes the texts again, in their order, and mixes 1,024 rows at a
    time. For more than memory or disk hold; files that are sorted by kind should be mixed before."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over the held-out texts, all of which are tokenized to find them; of a stream
    the first ones."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "held_out_rows"):
            positive_int(name, getattr(self, name))
        check_vocabulary(self.vocabulary, self.beginning)
        require(
            not self.stream or self.cache is None,
            f"a stream keeps no rows, and cache is {self.cache}: leave out --data.stream or --data.cache",
        )

    @columns_named_by("column")
    def fitted(self) -> TextData:
        """The same with what is "auto" chosen from the texts."""
        data = self
        if data.divided == "auto":
            check_source(data.source)
            count = sum(1 for _ in islice(read_documents(data.source, "all", data.column), FEW_DOCUMENTS))
            data = replace(data, divided="documents" if count == FEW_DOCUMENTS else "passages")
        if data.vocabulary == "auto":
            data = replace(data, vocabulary=fitting_vocabulary(data._texts(data.source, data._training)))
        return data

    @once
    def tokenizer(self) -> TextTokenizer:
        """What makes the tokens; it is learnt, or loaded, once."""
        if self.vocabulary == "letters":
            return character_tokenizer(alphabet="27")
        if self.vocabulary not in ("characters", "bpe"):
            return pretrained_tokenizer(self.vocabulary, self.mask_token, self.end_token, self.beginning)
        return learnt_tokenizer(self.vocabulary, self._texts(self.source, self._training), self.vocab_size)

    def with_tokenizer(self, folder: Path) -> TextData:
        """The same texts by a tokenizer that a run has saved."""
        return replace(self, vocabulary=f"{SAVED}{folder}", mask_token=None, end_token=None)

    def found_from(self, folder: Path) -> TextData:
        """The same texts, with files and tokenizer looked for in a folder too."""
        source = self.source if self.source == "sotu" else files_found_from(folder, self.source)
        apart = files_found_from(folder, self.held_out_source)
        vocabulary = self.vocabulary if self.vocabulary in LEARNT else found_from(folder, self.vocabulary)
        return replace(self, source=source, held_out_source=apart, vocabulary=vocabulary)

    @columns_named_by("column")
    def check(self) -> None:
        """Raise ValueError where no text is held out, or one is trained on too."""
        check_source(self.source)
        if self.divided == "documents" or self.held_out_source is not None:
            check_parts(self.source, self.held_out_source, (self.column,))
        else:
            check_count(sum(1 for _ in islice(self._texts(self.source, "validation"), 2)), self.source)

    def load(self) -> Dataset | IterableDataset:
        """Rows of the training texts. Of a stream each caller gets one of its own."""
        return self._rows(self.source, self._training) if self.stream else self._training_rows

    @once
    def held_out(self) -> Dataset:
        """Rows of the held-out texts."""
        apart = self.held_out_source
        rows = self._rows(self.source, "validation") if apart is None else self._rows(apart, "all")
        return spread(at_hand(rows, self.held_out_rows), self.held_out_rows)

    @cached_property
    def _training_rows(self) -> Dataset | IterableDataset:
        return self._rows(self.source, self._training)

    @property
    def _training(self) -> Split:
        """Which part of `source` is trained on."""
        return "train" if self.held_out_source is None else "all"

    def _texts(self, source: Files, split: Split) -> Iterator[str]:
        """The texts of a part, one document in memory at a time: documents, or passages of them."""
        if self.divided != "passages":
            for document in read_documents(source, split, self.column):
                yield document[self.column] or ""
            return
        for document in read_documents(source, "all", self.column):
            pieces = passages(document[self.column] or "")
            yield from (piece for piece in pieces if belongs({"text": piece}, split, "text"))

    def _rows(self, source: Files, split: Split) -> Dataset | IterableDataset:
        made: dict[str, Any] = {"tokenizer": self.tokenizer(), "length": self.length}
        made |= {"packing": self.packing, "ending": self.ending}
        made |= {} if self.stream else {"cache": self.cache}
        if self.divided == "passages":
            texts = partial(self._texts, source, split)
            if self.stream:
                pieces = IterableDataset.from_generator(lambda: ({"text": text} for text in texts()))
                rows = tokenize_stream(pieces, "text", **made)
            else:
                rows = tokenize(Dataset.from_dict({"text": list(texts())}), "text", **made)
        else:
            rows = (stream_text if self.stream else load_text)(source, split, column=self.column, **made)
        return first_token_given(rows) if self.first_given else rows


def check_source(source: Files) -> None:
    """Raise ValueError where no data are named."""
    require(len(source) > 0, "there are no data: name them as source (--data.source FILE)")


def check_count(held_out: int, source: Files, apart: Files | None = None) -> None:
    """Raise ValueError for fewer held-out texts, of a source or of what is held out apart, than an interval needs."""
    count, needs = "none" if held_out == 0 else "only one", "and an interval needs two: give more"
    require(
        held_out >= 2,
        f"of the texts in {apart}, which are held out, there is {count}, {needs}"
        if apart is not None
        else f"{count} of the texts in {source} is held out (one in ten is, by its content), {needs}, or name files "
        "as held_out_source (--data.held-out-source)",
    )


def check_apart(source: Sequence[str | Path], apart: Sequence[str | Path]) -> None:
    """Raise ValueError where a file, or a name on the hub, is among those to train on and those to hold out."""
    named, held_out = (
        {place if isinstance(place, str) else place.resolve() for place in places} for places in (source, apart)
    )
    shared = sorted(map(str, named & held_out))
    require(not shared, f"{', '.join(shared)} is in both source and held_out_source")


def fitting_vocabulary(texts: Iterable[str]) -> str:
    """The vocabulary for texts: "characters" where they have less than a million of at most 256 kinds, else "bpe".

    No more of them is read than that takes.
    """
    count, kinds = 0, set[str]()
    for text in texts:
        count += len(text)
        kinds.update(text)
        if count >= 1_000_000 or len(kinds) > 256:
            return "bpe"
    return "characters"


def check_vocabulary(vocabulary: str, beginning: Beginning) -> None:
    """Raise ValueError for a beginning by BOS where the vocabulary has none."""
    if beginning == "bos" and vocabulary in LEARNT:
        raise ValueError(f"the vocabulary {vocabulary!r} has no BOS token: leave --data.beginning out")


def learnt_tokenizer(vocabulary: str, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Learn "characters" or "bpe" (of at most `vocab_size` tokens) from texts."""
    return character_tokenizer(texts) if vocabulary == "characters" else bpe_tokenizer(texts, vocab_size)


def files_found_from(folder: Path, files: Files | None) -> Files | None:
    """The files, if there are any, each looked for in a folder too."""
    if files is None or isinstance(files, str):
        return files and found_from(folder, files)
    return tuple(found_from(folder, file) for file in files)


def pretrained_tokenizer(
    name: str,
    mask_token: str | None = None,
    end_token: str | None = None,
    beginning: Beginning = "tokenizer",
) -> TextTokenizer:
    """Load a tokenizer that there is already.

    Args:
        name: saved:FOLDER is one that a run has saved; else name or folder of a pretrained one, or package:NAME.
        mask_token: of a pretrained one, added where it has none.
        end_token: which of its tokens ends a text, where it names none.
        beginning: what stands before every text, as for `TextTokenizer.from_hugging_face`; a saved tokenizer knows.
    """
    if name.startswith(SAVED):
        return TextTokenizer.load(name.removeprefix(SAVED))
    place, options = located(name)
    tokenizer = load_tokenizer(place, mask_token, **options)
    if end_token is not None:
        require(end_token in tokenizer.get_vocab(), f"{name} has no token {end_token!r}")
        tokenizer.eos_token = end_token
    return TextTokenizer.from_hugging_face(tokenizer, beginning)


def check_parts(
    source: Files, held_out_source: Files | None, columns: tuple[str, ...] = ("text",), least: int = 1
) -> None:
    """Look whether something is held out and nothing of it trained on, reading no more documents than that takes.

    Args:
        source: files to train on.
        held_out_source: files that are held out; None: documents of the source, by the first column's content.
        columns: what is read of them.
        least: documents that must be held out.

    Raises:
        ValueError: where fewer documents are held out, or a held-out file is among those to train on.
    """
    if held_out_source is None:
        held_out = (d for d in read_documents(source, "all", columns) if belongs(d, "validation", columns))
        found = sum(1 for _ in islice(held_out, least))
        require(
            found >= least,
            f"{found or 'no'} document of {source} is held out, and {least} must be: one in ten is, by its content. "
            "Give more, name other files as held_out_source (--data.held-out-source), or divide the text into "
            "documents: a .jsonl file with a paragraph a line",
        )
    else:
        check_apart(files_of(source), files_of(held_out_source))
        found = sum(1 for _ in islice(read_documents(held_out_source, "all", columns), least))
        require(found >= least, f"{held_out_source} holds {found or 'no'} document, and {least} must be held out")


def spread(rows: Dataset, count: int) -> Dataset:
    """At most `count` rows, evenly from the first to the last."""
    return rows.select(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)))


Kept = TypeVar("Kept", Dataset, IterableDataset, Dataset | IterableDataset)


def first_token_given(rows: Kept) -> Kept:
    """The rows with the first token not maskable, of each document where they hold several.

    Rows that then have nothing to learn are left out.
    """

    def given(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept: dict[str, list[Any]] = {name: [] for name in batch}
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            document = np.asarray(row.get("document", np.zeros(len(row["tokens"]), dtype=np.int64)))
            row["maskable"] = np.asarray(row["maskable"]) & (np.diff(document, prepend=-1) == 0)
            if row["maskable"].any():
                for name, value in row.items():
                    kept[name].append(value)
        return kept

    return rows.map(given, batched=True, features=rows.features)

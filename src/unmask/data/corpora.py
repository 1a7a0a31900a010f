"""Public data sets, from the Hugging Face hub or from files of the same form: what is a row, and what is a split.

    rows = GSM8K.load("train", tokenizer=tokenizer, length=256, cache="caches")
    rows = LM1B.load("train", tokenizer=tokenizer, length=128, source="lm1b/train.jsonl")

The hub is asked only when a method is called without a `source`. Another data set of one of these forms is one more
`TextCorpus` or `PromptCorpus`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset, IterableDataset, load_dataset

from unmask.config import check_name
from unmask.data.columns import PathLike, check_column
from unmask.data.documents import Source, Split, belongs, source_hash, stream_documents
from unmask.data.endings import Ending
from unmask.data.supervised import TooLong, as_prompt, prompt_rows
from unmask.data.text import Packing, tokenize
from unmask.data.tokenizers import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where a data set is and how it is divided.

    Attributes:
        hub: its name on the Hugging Face hub.
        subset: which of its configurations.
        columns: what is read of it; the first decides the split where it has none of its own.
        splits: its own splits. Without any, all of its "train" is divided by content (`unmask.data.split_of`) into
            "train", "validation" and "test".
    """

    hub: str
    columns: tuple[str, ...]
    subset: str | None = None
    splits: tuple[str, ...] = ()

    def documents(
        self, split: str = "train", source: Source | None = None, revision: str | None = None
    ) -> IterableDataset:
        """The documents of a split as a stream; nothing is read or downloaded before it is asked for one.

        Args:
            split: see `splits`.
            source: files of the same form instead of the hub (see `load_documents`); of a data set with splits of
                its own, the files of this split.
            revision: the state of the data set on the hub: a commit, tag or branch.

        Raises:
            ValueError: for an unknown split.
        """
        check_name("split", split, self.splits or ("train", "validation", "test", "all"))
        part = cast(Split, "all" if self.splits else split)
        if source is not None:
            return stream_documents(source, part, self.columns)
        return IterableDataset.from_generator(lambda: self._from_hub(split, part, revision))

    def version(self, split: str, source: Source | None = None, revision: str | None = None) -> str:
        """What caches know the documents by: a hash of the files, or the revision on the hub.

        Raises:
            ValueError: without a source or a revision: what the hub holds today, it may not hold tomorrow.
        """
        if source is not None:
            return f"{source_hash(source)} {self.columns} {split}"
        if revision is None:
            raise ValueError(f"to cache rows of {self.hub}, name its state on the hub, a commit: revision='...'")
        return f"{self.hub} {self.subset} {split} {revision}"

    def _from_hub(self, split: str, part: Split, revision: str | None) -> Iterator[dict[str, Any]]:
        own = split if self.splits else "train"
        stream = load_dataset(self.hub, self.subset, split=own, revision=revision, streaming=True)
        for record in cast(IterableDataset, stream):
            for column in self.columns:
                check_column(self.hub, column, record)
            document = {column: record[column] for column in self.columns}
            if belongs(document, part, self.columns):
                yield document


@dataclass(frozen=True, kw_only=True)
class TextCorpus(Corpus):
    """Prose. `packing` says what a row is, as for `unmask.data.tokenize`."""

    packing: Packing

    def load(
        self,
        split: str = "train",
        *,
        tokenizer: TextTokenizer,
        length: int,
        ending: Ending = "trained",
        source: Source | None = None,
        revision: str | None = None,
        cache: PathLike | None = None,
    ) -> Dataset:
        """Rows of a split, as `unmask.data.tokenize` makes them. See `documents` for source and revision."""
        TextTokenizer.check(tokenizer)
        documents = self.documents(split, source, revision)
        version = None if cache is None else self.version(split, source, revision)
        column = self.columns[0]
        return tokenize(documents, column, tokenizer, length, self.packing, ending, cache=cache, version=version)


@dataclass(frozen=True, kw_only=True)
class PromptCorpus(Corpus):
    """Questions and answers. `prompt` and `response` are templates, as for `unmask.data.prompt_rows`."""

    prompt: str
    response: str

    def asked(self, question: str) -> str:
        """A question as the rows' prompts have it."""
        return as_prompt(question, self.prompt)

    def load(
        self,
        split: str = "train",
        *,
        tokenizer: TextTokenizer,
        length: int,
        ending: Ending = "trained",
        too_long: TooLong = "drop",
        source: Source | None = None,
        revision: str | None = None,
        cache: PathLike | None = None,
    ) -> Dataset:
        """Rows of a split, as `unmask.data.prompt_rows` makes them. See `documents` for source and revision."""
        TextTokenizer.check(tokenizer)
        return prompt_rows(
            self.documents(split, source, revision),
            tokenizer,
            length=length,
            prompt=self.prompt,
            response=self.response,
            ending=ending,
            too_long=too_long,
            cache=cache,
            version=None if cache is None else self.version(split, source, revision),
        )


#: One Billion Words: single sentences in random order (arXiv 1312.3005).
LM1B = TextCorpus(hub="dvruette/lm1b", columns=("text",), splits=("train", "test"), packing="document")

#: Web pages, an open copy of GPT-2's training data. It has no held-out part: its content divides it.
OPENWEBTEXT = TextCorpus(hub="Skylion007/openwebtext", columns=("text",), packing="packed")

#: School mathematics answered by Python programs, made by a language model (arXiv 2312.09241).
TINYGSM = PromptCorpus(hub="TinyGSM/TinyGSM", columns=("question", "code"), prompt="{question}\n", response="{code}")

#: School mathematics answered in words and steps; "####" precedes the result (arXiv 2110.14168).
GSM8K = PromptCorpus(
    hub="openai/gsm8k",
    subset="main",
    columns=("question", "answer"),
    splits=("train", "test"),
    prompt="{question}\n",
    response="{answer}",
)

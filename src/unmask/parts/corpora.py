"""Public data sets as rows, from the hub or from local files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets import Dataset

from unmask.config import check_name, positive_int
from unmask.data import TextTokenizer
from unmask.data.beginnings import Beginning
from unmask.data.corpora import GSM8K, LM1B, OPENWEBTEXT, TINYGSM, PromptCorpus
from unmask.data.endings import Ending
from unmask.parts.once import once
from unmask.parts.places import found_from
from unmask.parts.text import (
    SAVED,
    Files,
    check_parts,
    files_found_from,
    first_token_given,
    pretrained_tokenizer,
    spread,
)

CORPORA = {"lm1b": LM1B, "openwebtext": OPENWEBTEXT, "tinygsm": TINYGSM, "gsm8k": GSM8K}


@dataclass(frozen=True)
class CorpusData:
    """A public data set, from the hub or from local files of the same form."""

    corpus: Literal["lm1b", "openwebtext", "tinygsm", "gsm8k"] = "lm1b"
    """Which one: single sentences, web pages, or school mathematics answered by programs or in words."""
    source: Files | None = None
    """Local files (.jsonl, .txt, a folder) instead of the hub's training part."""
    held_out_source: Files | None = None
    """Local files instead of the hub's test part. None: that, or where there is none one in ten documents, by their
    content."""
    tokenizer_name: str = "google-bert/bert-base-uncased"
    """Name or folder of the tokenizer: of a pretrained model, the model's own. saved:FOLDER is that of a run, in a
    checkpoint's model."""
    revision: str | None = None
    """State of the data set on the hub: a commit, tag or branch. Needed for a cache of it."""
    mask_token: str | None = None
    """Its mask token, added where it has none; as the model's."""
    end_token: str | None = None
    """Which of its tokens ends a text, where it names none."""
    length: int = 128
    """Most tokens of a row."""
    beginning: Beginning = "tokenizer"
    """What stands before every text, given: as the tokenizer does itself, none, or its bos token."""
    ending: Ending = "trained"
    """What marks the end of a text, and whether it is learnt."""
    first_given: bool = False
    """The first token of every row is never masked: for shifted models, where a row has no prompt."""
    cache: str | None = None
    """Folder to keep the tokenized rows in. None: in memory."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over the held-out texts, all of which are tokenized to find them."""

    def __post_init__(self) -> None:
        for name in ("length", "held_out_rows"):
            positive_int(name, getattr(self, name))
        check_name("corpus", self.corpus, tuple(CORPORA))
        if CORPORA[self.corpus].splits and (self.source is None) != (self.held_out_source is None):
            raise ValueError(
                f"{self.corpus} has a test part of its own: set both source and held_out_source, or none"
            )

    @once
    def tokenizer(self) -> TextTokenizer:
        """What makes the tokens; it is loaded once."""
        return pretrained_tokenizer(self.tokenizer_name, self.mask_token, self.end_token, self.beginning)

    def with_tokenizer(self, folder: Path) -> CorpusData:
        """The same texts by a tokenizer that a run has saved."""
        return replace(self, tokenizer_name=f"{SAVED}{folder}", mask_token=None, end_token=None)

    def asked(self, question: str) -> str:
        """A question as the rows' prompts have it; of prose the beginning itself."""
        corpus = CORPORA[self.corpus]
        return corpus.asked(question) if isinstance(corpus, PromptCorpus) else question

    def found_from(self, folder: Path) -> CorpusData:
        """The same texts, with local files and tokenizer looked for in a folder too."""
        source, apart = (files_found_from(folder, files) for files in (self.source, self.held_out_source))
        name = found_from(folder, self.tokenizer_name)
        return replace(self, source=source, held_out_source=apart, tokenizer_name=name)

    def check(self) -> None:
        """Raise ValueError where no text of local files is held out, or one is trained on too."""
        if self.source is not None:
            check_parts(self.source, self.held_out_source, CORPORA[self.corpus].columns)

    def load(self) -> Dataset:
        """Rows of the training part."""
        divided = CORPORA[self.corpus].splits or self.held_out_source is None
        return self._rows("train" if divided else "all", self.source)

    def held_out(self) -> Dataset:
        """Rows of the test part, of the files to hold out, or of the texts that are held out by their content."""
        if CORPORA[self.corpus].splits:
            rows = self._rows("test", self.held_out_source)
        elif self.held_out_source is not None:
            rows = self._rows("all", self.held_out_source)
        else:
            rows = self._rows("validation", self.source)
        return spread(rows, self.held_out_rows)

    def _rows(self, split: str, source: Files | None) -> Dataset:
        rows = CORPORA[self.corpus].load(
            split,
            tokenizer=self.tokenizer(),
            length=self.length,
            ending=self.ending,
            source=source,
            revision=self.revision,
            cache=self.cache,
        )
        return first_token_given(rows) if self.first_given else rows

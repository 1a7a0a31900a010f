"""Sequences of a user's own: proteins, DNA, SMILES, or anything else that is written in letters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from unmask.config import positive_int, require
from unmask.data import TextTokenizer, character_tokenizer, tokenize
from unmask.data.columns import columns_named_by
from unmask.data.documents import Split, belongs, files_of, has_columns, rows_of_table
from unmask.data.endings import Ending
from unmask.data.sequences import ALPHABETS, ENDINGS, found_alphabet, letters_of, read_sequences
from unmask.parts.once import once
from unmask.parts.sizes import fitting_length
from unmask.parts.text import SAVED, Files, check_apart, check_count, check_source, files_found_from, spread


@dataclass(frozen=True)
class SequenceData:
    """A row of each sequence, a token of each letter."""

    source: Files = ()
    """FASTA files, or text files with one sequence a line (.gz or not); or tables (.csv, .parquet, .jsonl, ...)."""
    held_out_source: Files | None = None
    """The same, to hold out. None: one in ten sequences of `source`, by their letters, and one in ten more is left
    for tests, neither trained on nor evaluated along the way."""
    column: str = "sequence"
    """Of tables: the column of sequences."""
    alphabet: str = "auto"
    """dna, rna, protein (all three in capitals), smiles; or its letters written out. auto: found from the sequences.
    saved:FOLDER is the vocabulary of a run."""
    length: int | None = None
    """Most tokens of a row. None: chosen from the sequences, at most 256."""
    too_long: Literal["auto", "cut", "window"] = "auto"
    """Longer sequences are cut off, or divided into windows of `length`. auto: windows for dna and rna."""
    ending: Ending = "trained"
    """What marks the end of a sequence, and whether it is learnt."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over those that are held out."""

    def __post_init__(self) -> None:
        positive_int("held_out_rows", self.held_out_rows)
        if self.length is not None:
            positive_int("length", self.length, least=2)
        if not self.alphabet.startswith(SAVED):
            letters_of(self.alphabet)

    def fitted(self) -> SequenceData:
        """The same with alphabet, length and what becomes of longer sequences chosen from the sequences."""
        data = self
        if data.alphabet == "auto":
            check_source(data.source)
            data = replace(data, alphabet=found_alphabet(self._own))
        if data.too_long == "auto":
            data = replace(data, too_long="window" if data.alphabet in ("dna", "rna") else "cut")
        if data.length is None:
            check_source(data.source)
            lengths = [len(sequence) + 1 for sequence in data._spelt(self._own, self.source)]
            data = replace(data, length=fitting_length(lengths, most=256))
        return data

    @once
    def tokenizer(self) -> TextTokenizer:
        """A token for each letter, and one for the end."""
        if self.alphabet.startswith(SAVED):
            return TextTokenizer.load(self.alphabet.removeprefix(SAVED))
        found = found_alphabet(self._own) if self.alphabet == "auto" else self.alphabet
        return character_tokenizer([letters_of(found)])

    def with_tokenizer(self, folder: Path) -> SequenceData:
        """The same sequences by the vocabulary that a run has saved."""
        return replace(self, alphabet=f"{SAVED}{folder}")

    def found_from(self, folder: Path) -> SequenceData:
        """The same sequences, with files looked for in a folder too."""
        source, apart = (files_found_from(folder, files) for files in (self.source, self.held_out_source))
        return replace(self, source=source, held_out_source=apart)

    def check(self) -> None:
        """Raise ValueError where too few sequences are held out, a file is trained on too, or a letter is unknown."""
        check_source(self.source)
        apart = self.held_out_source
        if apart is not None:
            check_apart(*(files_of(files, ENDINGS) for files in (self.source, apart)))
        check_count(len(self._apart), self.source, apart)

    @once
    def load(self) -> Dataset:
        """Rows of the sequences to train on: `tokens` and `maskable`."""
        return self._rows(self._part(self.source, "train" if self.held_out_source is None else "all"))

    @once
    def held_out(self) -> Dataset:
        """Rows of sequences that are not trained on."""
        return spread(self._rows(self._apart), self.held_out_rows)

    def left_for_tests(self) -> int:
        """How many sequences, or windows of them, of `source` are neither trained on nor held out."""
        return 0 if self.held_out_source is not None else len(self._part(self.source, "test"))

    @cached_property
    def _apart(self) -> list[str]:
        apart = self.held_out_source
        return self._part(self.source, "validation") if apart is None else self._part(apart, "all")

    @cached_property
    def _own(self) -> list[str]:
        return self._written(self.source)

    def _written(self, source: Files) -> list[str]:
        """The sequences as the files have them."""
        found = []
        for path in files_of(source, ENDINGS):
            if has_columns(path):
                with columns_named_by("column"):
                    found += [self._letters(row) for row in rows_of_table(path, [self.column])]
            else:
                found += read_sequences(path)
        found = [sequence for sequence in found if sequence]
        require(len(found) > 0, f"there is no sequence in {source}: it is empty")
        return found

    def _letters(self, row: dict[str, Any]) -> str:
        """A row's sequence; "" where it has none, ValueError where that is no text."""
        cell = row[self.column]
        require(
            isinstance(cell, str | None),
            f"column {self.column!r} of {row['file']} holds {cell!r}, which is no sequence of letters. Name another "
            "by column (--data.column)",
        )
        return cell or ""

    def _spelt(self, written: list[str], source: Files) -> list[str]:
        """Sequences of a source in letters of the alphabet; ValueError for other letters."""
        known = set(self.tokenizer().tokenizer.get_vocab())
        if not any(len(letter) == 1 and letter.islower() for letter in known):  # small letters mean the capital ones
            written = [sequence.upper() for sequence in written]
        lost = sorted(set().union(*map(set, written)) - known)
        count = sum(not known.issuperset(sequence) for sequence in written) if lost else 0
        require(
            not lost,
            f"{count:,} of {len(written):,} sequences in {source} have letters that are not in the alphabet "
            f"{self.alphabet}: {' '.join(map(repr, lost))}. Give another --data.alphabet ({', '.join(ALPHABETS)}, or "
            "the letters), or mend the file",
        )
        return written

    def _part(self, source: Files, split: Split) -> list[str]:
        """Sequences, or windows of them, that lie in a split."""
        data = self.fitted()
        assert data.length is not None
        pieces = data._spelt(self._own if source == self.source else self._written(source), source)
        if data.too_long == "window":
            pieces = [s[i : i + data.length] for s in pieces for i in range(0, len(s), data.length)]
        return [piece for piece in pieces if belongs({"text": piece}, split, "text")]

    def _rows(self, part: list[str]) -> Dataset:
        length = self.fitted().length
        assert length is not None
        require(len(part) > 0, f"none of the sequences in {self.source} is left to train on: give more")
        return tokenize(Dataset.from_dict({"text": part}), "text", self.tokenizer(), length, "document", self.ending)

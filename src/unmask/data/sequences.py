"""Sequences of letters, such as DNA, proteins and SMILES: FASTA files, or one sequence a line."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from unmask.config import meant, nearest, require
from unmask.data.columns import PathLike

#: Alphabets by name. DNA and RNA have the ambiguity codes of IUPAC, proteins the rarer and ambiguous residues.
ALPHABETS = {
    "dna": "ACGTRYSWKMBDHVN",
    "rna": "ACGURYSWKMBDHVN",
    "protein": "ACDEFGHIKLMNPQRSTVWYBJOUXZ*",
    "smiles": "#%()*+-./0123456789:=@ABCDEFGHIKLMNOPRSTUVWXYZ[\\]abcdefghiklmnoprstuy",
}
_FASTA = (".fasta", ".fa", ".faa", ".fna", ".ffn", ".fas")
#: Endings of the files with sequences that a folder may hold.
ENDINGS = (*_FASTA, *(f"{ending}.gz" for ending in _FASTA), ".txt", ".txt.gz", ".smi", ".smi.gz")
_RECORD = re.compile(r"\s*>[^\n]*\n[ \t]*[A-Za-z*.-]{10,}[ \t]*(\n|$)")


def is_fasta(path: PathLike, beginning: str = "") -> bool:
    """Whether a file is FASTA: by its ending (.gz or not), or by a header and a line of letters at its beginning."""
    return str(path).lower().removesuffix(".gz").endswith(_FASTA) or _RECORD.match(beginning) is not None


def read_sequences(path: PathLike) -> Iterator[str]:
    """Read the sequences of a text file, one at a time: of FASTA without the headers, else one a line. .gz too.

    In .smi files names may follow the SMILES, and a header "SMILES ..." may come before them: neither is read.

    Raises:
        ValueError: naming the line, for what is no sequence because of white space in it; for FASTQ, for what is not
            UTF-8, and for a .gz file that is damaged.
    """
    opened = gzip.open if Path(path).suffix.lower() == ".gz" else open
    parts, begun, fasta, named = [], False, is_fasta(path), str(path).lower().removesuffix(".gz").endswith(".smi")
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip()
                if not line:
                    continue
                first, begun = not begun, True
                if named:
                    line = line.split()[0]
                    if first and line.lower() == "smiles":
                        continue
                require(
                    not first or fasta or not line.startswith("@"),
                    f"{path} is FASTQ, whose lines of qualities are no sequences: write it as FASTA",
                )
                fasta = fasta or (line.startswith(">") and not parts)
                if not fasta:
                    require(
                        len(line.split()) == 1,
                        f"{path}:{number} holds white space: write one sequence a line, or FASTA",
                    )
                    yield line
                elif line.startswith((">", ";")):
                    if parts:
                        yield "".join(parts)
                    parts = []
                else:
                    parts += line.split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked, it is damaged or cut short: {error}") from None
    if parts:
        yield "".join(parts)


def found_alphabet(sequences: Iterable[str]) -> str:
    """The name of the alphabet that sequences are written in, or else their characters, in code point order.

    DNA and RNA are told from proteins, whose letters include theirs, by nine of ten letters being bases or N.

    Raises:
        ValueError: for no letter at all.
    """
    counts: Counter[str] = Counter()
    for sequence in sequences:
        counts.update(sequence)
    require(len(counts) > 0, "there are no sequences to find the alphabet of")
    capitals: Counter[str] = Counter()
    for letter, count in counts.items():
        capitals[letter.upper()] += count
    for name, bases in (("dna", "ACGTN"), ("rna", "ACGUN")):
        if set(capitals) <= set(ALPHABETS[name]) and sum(capitals[base] for base in bases) >= 0.9 * capitals.total():
            return name
    return "protein" if set(capitals) <= set(ALPHABETS["protein"]) else "".join(sorted(counts))


def letters_of(alphabet: str) -> str:
    """The letters of an alphabet by its name, or those that are written out; ValueError for a wrong name."""
    name = alphabet.lower()
    listed = len(set(name)) == len(name) and not (len(name) > 3 and meant(name, ALPHABETS))  # each letter once
    if name not in ALPHABETS and name.isalpha() and not listed:
        raise ValueError(
            f"unknown alphabet '{alphabet}'{nearest(name, ALPHABETS)}; or write its letters out, in any order"
        )
    return ALPHABETS.get(name, "".join(sorted(set(alphabet))))

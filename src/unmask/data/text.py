"""Prose as rows of tokens: the bundled State of the Union addresses, local files, any Hugging Face data set.

Three steps, each usable alone: `load_documents` gives texts, `character_tokenizer` or `bpe_tokenizer` learns
a vocabulary from them, and `tokenize` makes rows. `load_text` is the first and the last in one call:

    tokenizer = bpe_tokenizer(load_documents("sotu", "train")["text"], vocab_size=4096)
    rows = load_text("sotu", "train", tokenizer=tokenizer, length=128)

A document belongs to a split as a whole, and its content alone decides which (`split_of`). So the splits share
no document, a text that occurs twice lies in one split, and adding files to a collection moves none of the
others. Rows are a pure function of the texts, `TextTokenizer.fingerprint` and the arguments of `tokenize`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from unmask.data.columns import check_name

Split = Literal["train", "validation", "test", "all"]
Packing = Literal["packed", "sentence"]
PathLike = str | os.PathLike[str]

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
UNKNOWN_TOKEN = "<|unknown|>"

#: The 27 characters of text8: a token's number is its place here.
LETTERS = " abcdefghijklmnopqrstuvwxyz"

_BUNDLED = {"sotu": Path(__file__).parent / "files" / "sotu.json.xz"}
_ONE_CHARACTER = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
# Anything but a letter goes before letters are lowered: some foreign letters have an English lower case.
_ONLY_LETTERS = normalizers.Sequence(
    [normalizers.Replace(Regex("[^a-zA-Z]+"), " "), normalizers.Lowercase(), normalizers.Strip()]
)
# White space after . ! or ? (perhaps in quotes or brackets) and before a capital, unless it follows an initial
# or a title; and blank lines.
_SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)\]]))(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.)(?<!\bMessrs\.)"""
    r"""\s+(?=["'“‘(\[]*[A-Z])|\n\s*\n"""
)


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer of the `tokenizers` library, with the two tokens that masked diffusion needs.

    Special tokens are never read from a text: a document that spells out "<|mask|>" gives ordinary tokens.

    Args:
        tokenizer: the tokenizer itself. Its padding, truncation and template of special tokens are not used.
        eos_token_id: the token between two documents.
        mask_token_id: the token that stands for a masked one; no text gives it.
    """

    tokenizer: Tokenizer
    eos_token_id: int
    mask_token_id: int

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True  # as text, that is
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the end-of-text and mask tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the tokenizer's JSON: equal for tokenizers that do the same."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, int32 [n]. Adds no special token."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each text, int32 [n]; faster than one text at a time."""
        if self._table is not None:
            return [_look_up(text, *self._table) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens [n], NumPy, torch or a list. Special tokens are spelt out."""
        return self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)

    def save(self, folder: PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, the files that transformers' `AutoTokenizer` opens."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config["mask_token"] = self.tokenizer.id_to_token(self.mask_token_id)
        eos_token = self.tokenizer.id_to_token(self.eos_token_id)
        if eos_token != " ":  # an ordinary character, which nobody else should treat as special
            config["eos_token"] = eos_token
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: PathLike) -> TextTokenizer:
        """Read what `save` wrote, or any Hugging Face folder with a fast tokenizer.

        Without an end-of-text token in the folder, documents are joined by the space.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the tokenizer has no mask token, or neither an end-of-text token nor a space.
        """
        folder = Path(folder)
        form = (folder / "tokenizer.json").read_text(encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(form)
        ids = {}
        for name, default in (("eos_token", " "), ("mask_token", None)):
            token = config.get(name) or default
            token = token["content"] if isinstance(token, dict) else token
            ids[name] = None if token is None else tokenizer.token_to_id(token)
            if ids[name] is None:
                raise ValueError(
                    f"the tokenizer in {folder} has no {name}; add one to its vocabulary and name it in "
                    f"tokenizer_config.json"
                )
        return cls(tokenizer, eos_token_id=ids["eos_token"], mask_token_id=ids["mask_token"])

    @cached_property
    def _table(self) -> tuple[np.ndarray, bool] | None:
        """What `_look_up` needs; None unless this is a character tokenizer."""
        form = json.loads(self.tokenizer.to_str())
        plain, letters = (json.loads(_characters({"a": 0}, n).to_str()) for n in (None, _ONLY_LETTERS))
        only_letters = form["normalizer"] == letters["normalizer"]
        if form["pre_tokenizer"] != plain["pre_tokenizer"] or form["model"]["type"] != "WordLevel":
            return None
        if form["normalizer"] is not None and not only_letters:
            return None
        vocabulary = form["model"]["vocab"]
        other = vocabulary[" " if only_letters else UNKNOWN_TOKEN]
        characters = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
        if only_letters:
            characters |= {ord(chr(code).upper()): i for code, i in characters.items()}
        table = np.full(max(characters, default=0) + 2, other, dtype=np.int32)
        table[list(characters)] = list(characters.values())
        return table, only_letters


def character_tokenizer(texts: Iterable[str] | None = None, alphabet: Literal["27"] | None = None) -> TextTokenizer:
    """Make a tokenizer with one token a character.

    Args:
        texts: what to take the characters from, in code point order. After them come a token for characters
            that do not occur here, the end-of-text token and the mask token.
        alphabet: "27" for text8's alphabet instead (`texts` is then not read): the space is token 0, the letters
            a to z are 1 to 26 and the mask is 27. Texts are lowered, each run of anything else, digits and
            accented letters included, becomes one space, and spaces at the ends are dropped. There is no
            end-of-text token in it: `eos_token_id` is the space, so packed documents read as one text.

    Raises:
        ValueError: for another alphabet, or without texts where they are needed.
    """
    if alphabet is not None:
        check_name("alphabet", alphabet, ("27",))
        vocabulary = {character: i for i, character in enumerate(LETTERS)}
        return _with_special_tokens(_characters(vocabulary, _ONLY_LETTERS), eos_token=" ")
    characters = sorted(set().union(*(set(text) for text in texts or ())))
    if not characters:
        raise ValueError("there are no characters in the texts; give texts to learn from, or alphabet='27'")
    return _with_special_tokens(_characters({token: i for i, token in enumerate([*characters, UNKNOWN_TOKEN])}))


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE tokenizer, which can write any text. The end-of-text and mask tokens come last.

    Args:
        texts: what to learn the merges from: the training split alone, to be strict.
        vocab_size: number of tokens, at least 258: 256 bytes and the two special tokens. Few texts may not
            have as many; then `TextTokenizer.vocab_size` is lower.

    Raises:
        ValueError: for a smaller vocabulary.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (256 bytes and two special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special_tokens(tokenizer)


def split_of(text: str) -> Literal["train", "validation", "test"]:
    """Tell which split a document belongs to, by a hash of its content: 8 : 1 : 1 in the mean."""
    tenth = int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
    return "validation" if tenth == 0 else "test" if tenth == 1 else "train"


def load_documents(source: PathLike | Sequence[PathLike] = "sotu", split: Split = "train") -> Dataset:
    """Load whole texts as an in-memory data set, in the order of the source.

    Args:
        source: "sotu" (233 State of the Union addresses, 1790 to 2021, 10.8 million characters, in order of
            year), or the path of a UTF-8 text file, or several paths. A file is one document.
        split: "train", "validation" or "test" (see `split_of`), or "all". A few files may leave a split empty.

    Returns:
        Rows with the column ``text`` and, of "sotu", ``year`` (int) and ``president``; of files, ``file``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown split, one without a document, or a file that is not UTF-8.
    """
    check_name("split", split, ("train", "validation", "test", "all"))
    if isinstance(source, str) and source in _BUNDLED:
        documents = json.loads(lzma.decompress(_BUNDLED[source].read_bytes()))
    else:
        paths = [source] if isinstance(source, (str, os.PathLike)) else source
        documents = [{"text": _read(Path(path)), "file": os.fspath(path)} for path in paths]
    chosen = [document for document in documents if split in ("all", split_of(document["text"]))]
    if not chosen:
        raise ValueError(
            f"none of the {len(documents)} documents falls into split {split!r}: a document's content decides; "
            "give more documents, or load split='all' and divide them yourself"
        )
    return Dataset.from_list(chosen)


def load_text(
    source: PathLike | Sequence[PathLike] = "sotu",
    split: Split = "train",
    *,
    tokenizer: TextTokenizer,
    length: int = 128,
    packing: Packing = "packed",
) -> Dataset:
    """Load rows of tokens as an in-memory data set: `load_documents`, then `tokenize`.

    See these two for the arguments, the columns and what is raised.
    """
    return tokenize(load_documents(source, split), "text", tokenizer, length, packing)


def tokenize(
    dataset: Dataset, column: str, tokenizer: TextTokenizer, length: int = 128, packing: Packing = "packed"
) -> Dataset:
    """Turn a column of documents into rows of tokens, in memory.

    Documents without a token are dropped with a warning.

    Args:
        dataset: any Hugging Face data set (not a dictionary of splits).
        column: the column of texts.
        tokenizer: what makes the tokens.
        length: L, the length of a full row in tokens.
        packing: "packed" joins the documents, in order, with an end-of-text token between two, and cuts the
            whole into rows of L tokens. No token is lost: the last row is kept and may be shorter. "sentence"
            makes a row of each (English) sentence, cut off after L tokens, without an end-of-text token; white
            space in it is collapsed, and sentences without a token are dropped.

    Returns:
        Rows with the columns ``tokens`` (int16 or, for more than 32,768 tokens, int32; up to L a row) and
        ``maskable`` (bool, True throughout, of the same length).

    Raises:
        TypeError: for a dictionary of splits, or a document that is neither text nor None.
        ValueError: for an unknown column or packing, a length below 1, or no token at all.
    """
    check_name("packing", packing, ("packed", "sentence"))
    if not isinstance(dataset, Dataset):
        raise TypeError(f"tokenize takes one datasets.Dataset, got {type(dataset).__name__}; choose a split of it")
    if column not in dataset.column_names:
        raise ValueError(f"the data set has no column {column!r}; it has {dataset.column_names}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")

    pieces, empty = [], []  # packed: what to join; sentence: the rows
    separator = np.array([tokenizer.eos_token_id], dtype=np.int32)
    for number, encoded in enumerate(_encoded(dataset, column, tokenizer, packing == "sentence")):
        if not encoded:
            empty.append(number)
        elif packing == "sentence":
            pieces += [tokens[:length] for tokens in encoded]
        else:
            pieces += [separator, *encoded] if pieces else encoded
    if not pieces:
        raise ValueError(f"none of the {len(dataset)} documents has a token")
    if empty:
        share = f"{len(empty)} of {len(dataset)}"
        warnings.warn(f"dropped {share} documents that have no token, first document {empty[0]}", stacklevel=2)

    tokens = np.concatenate(pieces).astype(np.int16 if tokenizer.vocab_size <= 2**15 else np.int32)
    if packing == "sentence":
        ends = np.cumsum([len(row) for row in pieces])
    else:
        ends = np.minimum(np.arange(length, len(tokens) + length, length), len(tokens))
    return Dataset(pa.table({"tokens": _rows(tokens, ends), "maskable": _rows(np.ones(len(tokens), bool), ends)}))


def _characters(vocabulary: dict[str, int], normalizer: Any = None) -> Tokenizer:
    """A tokenizer that looks each character up after normalising the text."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = _ONE_CHARACTER
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _with_special_tokens(tokenizer: Tokenizer, eos_token: str = EOS_TOKEN) -> TextTokenizer:
    """Add the mask token and, unless it is an ordinary token, the end-of-text token."""
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([token for token in (eos_token, MASK_TOKEN) if token not in known])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return TextTokenizer(tokenizer, eos_token_id=ids[eos_token], mask_token_id=ids[MASK_TOKEN])


def _look_up(text: str, table: np.ndarray, only_letters: bool) -> np.ndarray:
    """Do what a character tokenizer does, int32 [n], a hundred times as fast.

    Args:
        text: the text.
        table: [C + 1] the token of each code point below C, then that of all others.
        only_letters: collapse runs of token 0, the space, and drop it at the ends.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    tokens = table[np.minimum(codes, len(table) - 1)]
    if only_letters:
        is_space = tokens == 0
        follows_space = np.concatenate([[True], is_space[:-1]])[: len(tokens)]
        tokens = tokens[~(is_space & follows_space)]
        if len(tokens) and tokens[-1] == 0:
            tokens = tokens[:-1]
    return tokens


def _read(path: Path) -> str:
    """Read a UTF-8 file, with line ends as \\n and without a byte order mark."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; the bundled texts are: {', '.join(_BUNDLED)}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} (counted from 0) is {byte:#04x}; convert the file"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _encoded(
    dataset: Dataset, column: str, tokenizer: TextTokenizer, by_sentence: bool
) -> Iterator[list[np.ndarray]]:
    """Yield the parts of each document, int32 [n] with n ≥ 1: its sentences, or the whole; [] for an empty one."""
    number = 0
    for batch in dataset.select_columns([column]).with_format(None).iter(batch_size=256):
        parts = []
        for text in cast(dict[str, list], batch)[column]:
            if not isinstance(text, str | None):
                raise TypeError(f"document {number} in column {column!r} is {type(text).__name__}, not text")
            text = text or ""
            parts.append(_sentences(text) if by_sentence else [text] if text.strip() else [])
            number += 1
        encoded = iter(tokenizer.encode_all([text for texts in parts for text in texts]))
        for texts in parts:
            yield [tokens for tokens in islice(encoded, len(texts)) if len(tokens)]


def _sentences(text: str) -> list[str]:
    return [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def _rows(values: np.ndarray, ends: np.ndarray) -> pa.ListArray:
    """Cut values [n] into rows that end before `ends`."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), pa.array(values))

"""Prose as rows of tokens: the bundled State of the Union addresses, local files, any Hugging Face data set.

Three steps, each usable alone: `load_documents` gives texts, `character_tokenizer` or `bpe_tokenizer` learns
a vocabulary from them, and `tokenize` makes rows. `load_text` is the first and the last in one call.
`stream_text` and `tokenize_stream` make the same rows as they are read, and keep none:

    tokenizer = bpe_tokenizer(load_documents("sotu", "train")["text"], vocab_size=4096)
    rows = load_text("sotu", "train", tokenizer=tokenizer, length=128)
    rows = tokenize(datasets.load_dataset("roneneldan/TinyStories", split="train"), "text", tokenizer, cache="caches")
    rows = stream_text("a-large-folder", "train", tokenizer=tokenizer)

Rows are a pure function of the texts, the tokenizer and the arguments of `tokenize`, and so is the key of a cache.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Literal, get_args

import numpy as np
from datasets import Dataset, IterableDataset

from unmask.config import check_name, require
from unmask.data.beginnings import with_prefix
from unmask.data.cache import Rows, as_dataset, as_stream, data_key
from unmask.data.columns import PathLike, check_dataset
from unmask.data.documents import Source, Split, batches, load_documents, source_hash, stream_documents
from unmask.data.endings import Ending, Rainbow, check_ending, with_ending
from unmask.data.tokenizers import TextTokenizer

Packing = Literal["packed", "apart", "sentence", "document"]

# White space after . ! or ? (perhaps in quotes or brackets) and before a capital, unless it follows an initial
# or a title; and blank lines.
_SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)\]]))(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.)(?<!\bMessrs\.)"""
    r"""\s+(?=["'“‘(\[]*[A-Z])|\n\s*\n"""
)


def load_text(
    source: Source = "sotu",
    split: Split = "train",
    *,
    tokenizer: TextTokenizer,
    column: str = "text",
    length: int = 128,
    packing: Packing = "packed",
    ending: Ending | Rainbow = "trained",
    cache: PathLike | None = None,
) -> Dataset:
    """Load rows of tokens: `load_documents`, then `tokenize`. See these two for the arguments and what is raised.

    Without a cache everything happens in memory. With one, the documents are read in a stream, and only if files,
    tokenizer or settings have changed.
    """
    TextTokenizer.check(tokenizer)
    if cache is None:
        return tokenize(load_documents(source, split, column), column, tokenizer, length, packing, ending)
    documents = stream_documents(source, split, column)
    version = f"{source_hash(source)} {split} {column}"
    return tokenize(documents, column, tokenizer, length, packing, ending, cache=cache, version=version)


def stream_text(
    source: Source = "sotu",
    split: Split = "train",
    *,
    tokenizer: TextTokenizer,
    column: str = "text",
    length: int = 128,
    packing: Packing = "packed",
    ending: Ending | Rainbow = "trained",
) -> IterableDataset:
    """Read the rows of `load_text` as a stream, in the same order: `stream_documents`, then `tokenize_stream`."""
    TextTokenizer.check(tokenizer)
    return tokenize_stream(stream_documents(source, split, column), column, tokenizer, length, packing, ending)


def tokenize(
    dataset: Dataset | IterableDataset,
    column: str,
    tokenizer: TextTokenizer,
    length: int = 128,
    packing: Packing = "packed",
    ending: Ending | Rainbow = "trained",
    *,
    cache: PathLike | None = None,
    version: str | None = None,
) -> Dataset:
    """Turn a column of documents into rows of tokens.

    Documents without a token are dropped with a warning that counts them and names the first.

    Args:
        dataset: any Hugging Face data set (not a dictionary of splits), also one that is streamed.
        column: the column of texts.
        tokenizer: what makes the tokens.
        length: L, the length of a full row in tokens.
        packing: "packed" joins the documents, in order, with an end-of-text token between two, and cuts the
            whole into rows of L tokens. No token is lost: the last row is kept and may be shorter. "apart" puts whole
            documents into a row as long as there is room, each begun and ended as a row of its own would be; none
            sees another, and positions count from its beginning. One that is longer than a row is cut into several;
            no token is lost. "document" makes a
            row of each document, "sentence" one of each (English) sentence, in which white space is collapsed. These
            two keep the first L tokens and warn with a count, and where there is room the row ends as `ending` says.
            Each row begins with the tokenizer's prefix, given (see `unmask.data.beginnings`); within packed rows it
            is not repeated.
        ending: what marks the end of a text, and whether it is learnt; see `unmask.data.endings`.
        cache: a folder; rows are then kept there and read through a memory map (see `unmask.data.cache`). None:
            in memory.
        version: what the cache knows the data by, instead of a hash of its content; needed for a stream. With the
            same version, column, tokenizer and settings the cached rows are used unseen. Data set, configuration and
            split are told apart by the names that `datasets` gives them; the version must name whatever else the
            documents depend on: their files, and what was done to them (`map`, `filter`, `take`).

    Returns:
        Rows with the columns ``tokens`` (int16 or, for more than 32,768 tokens, int32; up to L a row) and
        ``maskable`` (bool, of the same length; False only for the tokenizer's prefix and for end-of-text tokens that
        are not trained); with packing "apart" also ``document`` (int32), the number of a token's document in its row.

    Raises:
        TypeError: for a tokenizer of transformers (see `TextTokenizer.from_hugging_face`), a dictionary of splits,
            or a document that is neither text nor None.
        ValueError: for an unknown column or policy, a length that is too short, no token at all, or a stream that is
            to be cached without a version.
    """
    make = _maker(dataset, column, tokenizer, length, packing, ending)
    settings = {"column": column, "length": length, "packing": packing, "ending": check_ending(ending)}
    key, documents = partial(data_key, dataset, [column], version), packing == "apart"
    return as_dataset(make(True), tokenizer, cache, settings, key, documents)


def tokenize_stream(
    dataset: Dataset | IterableDataset,
    column: str,
    tokenizer: TextTokenizer,
    length: int = 128,
    packing: Packing = "packed",
    ending: Ending | Rainbow = "trained",
) -> IterableDataset:
    """Turn a column of documents into rows as they are read; nothing is kept, in memory or on a disk.

    The rows are those of `tokenize`, in the order of the documents; `unmask.Trainer` and `unmask.data.rows_of` take
    them. Every pass reads and tokenizes the documents again, in every rank of a run. Whoever goes on at a row, as a
    resumed run does, has the documents before it read and tokenized first.

    Args:
        dataset: documents that are the same at each pass. To mix them anew in every epoch, shuffle the rows that are
            returned: ``.shuffle(seed, buffer_size=10_000)``.
        column: as for `tokenize`, which has the rest of the arguments, and what is raised.
        tokenizer: what makes the tokens.
        length: L, the length of a full row in tokens.
        packing: what a row is.
        ending: what marks the end of a text.

    Returns:
        Rows with the columns ``tokens``, ``maskable`` and, with packing "apart", ``document``.
    """
    make = _maker(dataset, column, tokenizer, length, packing, ending)
    return as_stream(partial(make, False))


def _maker(
    dataset: Dataset | IterableDataset,
    column: str,
    tokenizer: TextTokenizer,
    length: int,
    packing: Packing,
    ending: Ending | Rainbow,
) -> Callable[[bool], Iterator[Rows]]:
    """What makes the rows of `tokenize`, each time anew; it is told whether to show how far it is."""
    TextTokenizer.check(tokenizer)
    check_dataset(dataset)
    check_name("packing", packing, get_args(Packing))
    check_ending(ending)
    require(
        packing != "apart" or ending in ("trained", "untrained"),
        "packing 'apart' has no padding to learn: use ending 'trained' or 'untrained'",
    )
    least = 2 if ending == "untrained" else 1  # a row of one end-of-text token alone has nothing to learn
    least += len(tokenizer.prefix)
    require(length >= least, f"length must be at least {least}, got {length}")

    def made(shown: bool) -> Iterator[Rows]:
        texts = _encoded(dataset, column, tokenizer, _sentences if packing == "sentence" else _whole, shown)
        return {"packed": _packed, "apart": _apart}.get(packing, _one_a_row)(texts, tokenizer, length, ending)

    return made


def _packed(
    texts: Iterator[list[np.ndarray]], tokenizer: TextTokenizer, length: int, ending: Ending | Rainbow
) -> Iterator[Rows]:
    """Join texts and cut the whole into rows; what does not fill a row waits for the next batch."""
    eos, before = tokenizer.eos_token_id, np.array(tokenizer.prefix, dtype=np.int32)
    room = length - len(before)
    separator = np.array([eos], dtype=np.int32), np.array([ending != "untrained"])
    rest, started = (np.empty(0, dtype=np.int32), np.empty(0, dtype=bool)), False
    for batch in texts:
        pieces = [piece for tokens in batch for piece in (separator, (tokens, np.ones(len(tokens), dtype=bool)))]
        tokens, maskable = Rows.of([rest, *pieces[not started :]])[:2]
        started = started or len(batch) > 0
        count = len(tokens) // room
        cut = count * room
        whole = np.hstack([np.tile(before, (count, 1)), tokens[:cut].reshape(count, room)])
        flags = np.hstack([np.zeros((count, len(before)), dtype=bool), maskable[:cut].reshape(count, room)])
        yield Rows(whole.ravel(), flags.ravel(), np.full(count, length))
        rest = tokens[cut:], maskable[cut:]
    if len(rest[0]):
        last = with_ending(*with_prefix(tokenizer.prefix, *rest), ending, eos, length, ended=True)
        yield Rows.of([last] if last else [])


def _apart(
    texts: Iterator[list[np.ndarray]], tokenizer: TextTokenizer, length: int, ending: Ending | Rainbow
) -> Iterator[Rows]:
    """Fill rows with whole documents; what has no room begins the next row."""
    room = length - len(tokenizer.prefix)
    eos = np.array([tokenizer.eos_token_id], dtype=np.int32), np.array([ending != "untrained"])
    row: list[tuple[np.ndarray, np.ndarray]] = []

    def made() -> Rows:
        joined = Rows.of(row)
        number = np.repeat(np.arange(len(row), dtype=np.int32), joined.lengths)
        row.clear()
        return joined._replace(lengths=np.array([len(joined.tokens)]), document=number)

    for batch in texts:
        for text in batch:
            tokens, maskable = Rows.of([(text, np.ones(len(text), dtype=bool)), eos])[:2]
            for start in range(0, len(tokens), room):
                part = slice(start, start + room)
                if not maskable[part].any():  # an untrained end alone
                    continue
                piece = with_prefix(tokenizer.prefix, tokens[part], maskable[part])
                if sum(len(other) for other, _ in row) + len(piece[0]) > length:
                    yield made()
                row.append(piece)
    if row:
        yield made()


def _one_a_row(
    texts: Iterator[list[np.ndarray]], tokenizer: TextTokenizer, length: int, ending: Ending | Rainbow
) -> Iterator[Rows]:
    """A row of each text, cut off after `length` tokens; says at the end how many were."""
    total = cut = 0
    eos = tokenizer.eos_token_id
    for batch in texts:
        every = [with_prefix(tokenizer.prefix, tokens, np.ones(len(tokens), dtype=bool)) for tokens in batch]
        total, cut = total + len(batch), cut + sum(len(tokens) > length for tokens, _ in every)
        yield Rows.of([with_ending(*row, ending, eos, length) or (row[0][:length], row[1][:length]) for row in every])
    if cut:
        warnings.warn(
            f"{cut:,} of {total:,} texts are longer than {length} tokens and were cut: "
            "a larger length (--data.length) keeps them whole",
            stacklevel=2,
        )


def _encoded(
    dataset: Dataset | IterableDataset,
    column: str,
    tokenizer: TextTokenizer,
    divide: Callable[[str], list[str]],
    shown: bool,
) -> Iterator[list[np.ndarray]]:
    """Divide documents into texts and yield the tokens of a batch of these, int32 [n] with n ≥ 1 each."""
    total, empty = 0, []
    for places, (documents,) in batches(dataset, [column], shown=shown):
        parts = []
        for place, document in zip(places, documents, strict=True):
            if not isinstance(document, str | None):
                raise TypeError(f"{place} in column {column!r} is {type(document).__name__}, not text")
            parts.append(divide(document or ""))
        encoded = iter(tokenizer.encode_all([text for texts in parts for text in texts]))
        found = [[tokens for tokens in islice(encoded, len(texts)) if len(tokens)] for texts in parts]
        total += len(places)
        empty += [place for place, texts in zip(places, found, strict=True) if not texts]
        yield [tokens for texts in found for tokens in texts]
    require(len(empty) < total, f"none of the {total} documents has a token")
    if empty:
        message = f"dropped {len(empty)} of {total} documents that have no token, first {empty[0]}"
        warnings.warn(message, stacklevel=2)


def _whole(text: str) -> list[str]:
    return [text] if text.strip() else []


def _sentences(text: str) -> list[str]:
    return [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text) if sentence.strip()]

"""Tokenised rows as data sets: in memory, made anew as they are read, or made once and kept in a cache.

A cached data set is a folder named by a hash of everything that its rows depend on: the documents, the tokenizer
and the settings. It holds ``rows.arrow``, which `datasets.Dataset.from_file` opens too, and ``about.json``, which
says what the hash was taken of. Making it takes memory for one batch of documents and one of rows, and
`unmask.RowStream` reads it in any order through a memory map; so this is also how to train on more than fits into
memory. What is to leave nothing on the disk is `as_stream`.

It is written under another name, flushed to the disk and renamed when it is whole, so neither a killed process nor a
power cut leaves half a cache under its name. What remains is a file that was changed or copied later: one that has
not the size and time of change that it was written with is hashed, and made anew if it is another. Otherwise opening
a cache reads none of its rows, needs no lock and works in a folder that cannot be written to. A disk that alters
bytes by itself is not noticed; ``sha256sum rows.arrow`` tells, against ``about.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset
from filelock import FileLock

from unmask.config import require
from unmask.data.columns import PathLike, check_dataset
from unmask.data.documents import batches
from unmask.data.tokenizers import TextTokenizer

#: Changes when the same documents, tokenizer and settings begin to give other rows or another file.
FORMAT = 2
_BATCH = 2**20  # tokens in one Arrow batch


class Rows(NamedTuple):
    """Some rows, end to end.

    Attributes:
        tokens: [n] integers.
        maskable: [n] bool.
        lengths: [R] integers, that add up to n.
        document: [n] integers, which document of its row a token is of; None where a row is one.
    """

    tokens: np.ndarray
    maskable: np.ndarray
    lengths: np.ndarray
    document: np.ndarray | None = None

    @classmethod
    def of(cls, rows: list[tuple[np.ndarray, np.ndarray]]) -> Rows:
        """Join rows, each given as tokens [n] and maskable [n]."""
        tokens = np.concatenate([np.empty(0, dtype=np.int32), *(row[0] for row in rows)])
        maskable = np.concatenate([np.empty(0, dtype=bool), *(row[1] for row in rows)])
        return cls(tokens, maskable, np.array([len(row[0]) for row in rows], dtype=np.int64))


def as_dataset(
    rows: Iterator[Rows],
    tokenizer: TextTokenizer,
    cache: PathLike | None,
    settings: Mapping[str, Any],
    data: Callable[[], str],
    documents: bool = False,
) -> Dataset:
    """Collect rows as a data set.

    Args:
        rows: what to collect. It is not touched where the cache has them.
        tokenizer: what made the tokens.
        cache: the folder of caches; None keeps the rows in memory.
        settings: JSON values, by names that tell one maker of rows from another: all that the rows depend on besides
            tokenizer and data.
        data: tells what the rows were made of, such as `data_key`; called only for a cache.
        documents: the rows say which document each token is of.

    Returns:
        Rows with the columns ``tokens`` (int16 or, for more than 32,768 tokens, int32) and ``maskable`` (bool), of
        the same length in each row; with `documents` also ``document`` (int32).
    """
    kind = pa.int16() if tokenizer.vocab_size <= 2**15 else pa.int32()
    columns = {"tokens": kind, "maskable": pa.bool_(), **({"document": pa.int32()} if documents else {})}
    schema = pa.schema({name: pa.list_(values) for name, values in columns.items()})
    if cache is None:
        return Dataset(pa.Table.from_batches(_arrow(rows, schema), schema))
    key = {"format": FORMAT, "data": data(), "tokenizer": tokenizer.fingerprint, **settings}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = Path(cache) / digest[:32]
    if _problem(folder, key):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # the ranks of a run ask at the same time: one makes it, the others wait
            if problem := _problem(folder, key):
                if folder.exists():
                    warnings.warn(
                        f"the cached rows in {folder} are not used: {problem}; they are made again", stacklevel=3
                    )
                _write(folder, rows, schema, key)
    return Dataset.from_file(str(folder / "rows.arrow"))


def as_stream(make: Callable[[], Iterator[Rows]]) -> IterableDataset:
    """Rows as a streamed data set, with the columns of `as_dataset`: each pass calls `make`, and keeps nothing."""
    return IterableDataset.from_generator(_each, gen_kwargs={"make": make})


def _each(make: Callable[[], Iterator[Rows]]) -> Iterator[dict[str, np.ndarray]]:
    for some in make():
        ends = np.cumsum(some.lengths)[:-1]
        columns = {name: values for name, values in some._asdict().items() if values is not None}
        del columns["lengths"]
        parts = {name: np.split(values, ends) for name, values in columns.items()}
        for i in range(len(some.lengths)):
            yield {name: values[i] for name, values in parts.items()}


def data_key(dataset: Dataset | IterableDataset, columns: list[str], version: str | None) -> str:
    """What stands for the data in a key: a hash of the columns' content, or `version` and the names that
    `datasets` gives what it has loaded: of data set, configuration and split.

    Raises:
        TypeError: for anything but a data set.
        ValueError: for a stream without a version.
    """
    check_dataset(dataset)
    if version is not None:
        names = (dataset.info.dataset_name, dataset.info.config_name, dataset.split)
        return f"version {version} of {[str(name) for name in names]}"
    require(
        not isinstance(dataset, IterableDataset),
        "a stream cannot be hashed before it is read: to cache its rows, name its state, as in version='2024-05'",
    )
    content = hashlib.sha256()
    for _, values in batches(dataset, columns):
        for document in zip(*values, strict=True):
            text = json.dumps(document, ensure_ascii=False, sort_keys=True, default=str)
            content.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return content.hexdigest()


def _arrow(rows: Iterator[Rows], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Join rows into Arrow batches of about `_BATCH` tokens."""
    waiting: list[Rows] = []
    for some in rows:
        waiting.append(some)
        if sum(len(part.tokens) for part in waiting) >= _BATCH:
            yield _arrow_batch(waiting, schema)
            waiting = []
    if waiting:
        yield _arrow_batch(waiting, schema)


def _arrow_batch(rows: list[Rows], schema: pa.Schema) -> pa.RecordBatch:
    lengths = np.concatenate([part.lengths for part in rows])
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = [np.concatenate([getattr(part, field.name) for part in rows]) for field in schema]
    values = [pa.array(found, field.type.value_type) for found, field in zip(columns, schema, strict=True)]
    return pa.record_batch([pa.ListArray.from_arrays(ends, column) for column in values], schema=schema)


def _write(folder: Path, rows: Iterator[Rows], schema: pa.Schema, key: Mapping[str, Any]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        path = partial / "rows.arrow"
        with path.open("wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for batch in _arrow(rows, schema):
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        size, changed = _size_and_time(path)
        about = {"key": dict(key), "bytes": size, "changed_ns": changed, "sha256": _sha256(path)}
        (partial / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _problem(folder: Path, key: Mapping[str, Any]) -> str | None:
    """Why a cache cannot be used; None if it can."""
    path = folder / "rows.arrow"
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if about["key"] != key:
            return "about.json names other data"
        if _size_and_time(path) == (about["bytes"], about["changed_ns"]):
            return None
        if about["sha256"] != _sha256(path):
            return "rows.arrow is damaged"
        with suppress(OSError):  # a copy: the next time it need not be hashed, where its time can be set
            os.utime(path, ns=(about["changed_ns"], about["changed_ns"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"it is not whole ({type(error).__name__}: {error})"
    return None


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and the time of the last change in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

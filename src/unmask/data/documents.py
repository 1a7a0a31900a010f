"""Documents: the bundled State of the Union addresses, text files, tables; whole in memory, or as a stream.

A document belongs to a split as a whole, and its content alone decides which (`split_of`). So the splits share
no document, a text that occurs twice lies in one split, and adding files to a collection moves none of the
others.
"""

from __future__ import annotations

import glob
import hashlib
import json
import lzma
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from datasets import Dataset, IterableDataset
from rich.console import Console
from rich.progress import Progress

from unmask.config import check_name, require
from unmask.data.columns import PathLike, check_column, check_dataset
from unmask.data.sequences import is_fasta
from unmask.data.tables import is_table, on_hub, read_table

Split = Literal["train", "validation", "test", "all"]
Source = PathLike | Sequence[PathLike]
Columns = str | Sequence[str]

_BUNDLED = {"sotu": Path(__file__).parent / "files" / "sotu.json.xz"}
JSON_LINES = (".jsonl", ".ndjson")
"""Endings of files of JSON lines: one form by two names."""
TEXTS = (".txt", ".md")
"""Endings of the files that are one text each."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def split_of(text: str) -> Literal["train", "validation", "test"]:
    """Tell which split a document belongs to, by a hash of its content: 8 : 1 : 1 in the mean."""
    tenth = int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
    return "validation" if tenth == 0 else "test" if tenth == 1 else "train"


def load_documents(source: Source = "sotu", split: Split = "train", columns: Columns = "text") -> Dataset:
    """Load documents as an in-memory data set, in the order of the source.

    Args:
        source: "sotu" (233 State of the Union addresses, 1790 to 2021, 10.8 million characters, in order of
            year), or a path, or several: of a UTF-8 text file (one document), a ``.jsonl`` or ``.ndjson`` file (one
            JSON object a line, each a document; blank lines are passed over), any other table that
            `unmask.data.tables.read_table` reads (a row is a document), a folder (all ``.txt``, ``.md``, ``.jsonl``
            and ``.ndjson`` files in it and below, in order of their paths; hidden files and folders are passed
            over) or a pattern such as "texts/*.txt".
        split: "train", "validation" or "test" (see `split_of`), or "all". A few files may leave a split empty.
        columns: what to take from JSON lines and tables, one name or several. The first one's content decides the
            split, so of questions and answers name the question first. Text files give ``text`` alone.

    Returns:
        Rows with these columns and, of "sotu", ``year`` (int) and ``president``; of files, ``file``; of JSON lines,
        ``line`` too, from 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown split, one without a document, a source without any text, a file that is not
            UTF-8, or a table without the columns; with file and line for what is not a JSON object, lacks a column,
            or has another type there than the lines before.
    """
    return Dataset.from_list(list(read_documents(source, split, columns)))


def stream_documents(source: Source = "sotu", split: Split = "train", columns: Columns = "text") -> IterableDataset:
    """Read what `load_documents` loads as a stream, one document in memory at a time. See there for the rest."""
    check_name("split", split, get_args(Split))
    files_of(source)  # a wrong path is told now
    named: dict[str, Any] = {"source": source, "split": split, "columns": columns}
    # A list would be taken for shards.
    named = {name: tuple(value) if isinstance(value, list) else value for name, value in named.items()}
    return IterableDataset.from_generator(read_documents, gen_kwargs=named)


def source_hash(source: Source) -> str:
    """SHA-256 (64 hexadecimal digits) of the content of a source's files, in their order, and how each is read.

    Of their names the ending counts alone, where it says that a file is a table or JSON lines.
    """
    whole = hashlib.sha256()
    for path in files_of(source):
        require(
            on_hub(path) is None, f"{path} may change on the hub, and its rows cannot be cached: save it to files"
        )
        form = path.suffix.lower() if is_table(path) else _is_json_lines(path)
        for file in sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            whole.update(f"{form} {digest}\n".encode())
    return whole.hexdigest()


def batches(
    dataset: Dataset | IterableDataset, columns: Sequence[str], size: int = 256, shown: bool = True
) -> Iterator[tuple[list[str], list[list[Any]]]]:
    """Walk through the documents of a data set, some at a time.

    Args:
        dataset: whole or streamed.
        columns: what is read.
        size: documents at a time.
        shown: a progress bar tells how far it is, on a terminal. A thread of a run has no display of its own.

    Yields:
        For `size` documents, their places ("document 7 (a.jsonl:8)", counted from 0) and the values of each column.

    Raises:
        TypeError: for anything but a data set, such as a dictionary of splits.
        ValueError: for an unknown column.
    """
    check_dataset(dataset)
    number, total = 0, None
    if isinstance(dataset, Dataset):
        total, names = len(dataset), dataset.column_names
        for column in columns:
            check_column("the data set", column, names)
        dataset = dataset.select_columns([n for n in names if n in (*columns, "file", "line")]).with_format(None)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("documents", total=total)
        for batch in cast(Iterator[dict[str, list]], dataset.iter(batch_size=size)):
            for column in columns:
                check_column("the data set", column, batch)
            count = len(next(iter(batch.values())))
            yield [_place(batch, number, i) for i in range(count)], [batch[column] for column in columns]
            number += count
            progress.update(task, completed=number)


def _place(batch: dict[str, list], number: int, i: int) -> str:
    file, line = (batch[name][i] if name in batch else None for name in ("file", "line"))
    where = "" if file is None else f" ({file})" if line is None else f" ({file}:{line})"
    return f"document {number + i}{where}"


def _documents(source: Source, columns: Columns) -> Iterator[dict[str, Any]]:
    columns = [columns] if isinstance(columns, str) else list(columns)
    require(len(columns) > 0, "name at least one column")
    for path in files_of(source):
        if has_columns(path):
            yield from rows_of_table(path, columns)
            continue
        require(
            columns == ["text"],
            f"{path} gives the column 'text' alone, not {columns}; JSON lines and tables have more",
        )
        if path in _BUNDLED.values():
            yield from json.loads(lzma.decompress(path.read_bytes()))
        else:
            advice = f"{path} is FASTA, and its headers are no text: the recipe is sequences --data.source {path}"
            require(not is_fasta(path), advice)
            text = _decoded(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")
            require(not is_fasta(path, text[:10_000]), advice)
            yield {"text": text, "file": str(path)}


def has_columns(path: Any) -> bool:
    """Whether one of `files_of` holds rows with columns: JSON lines, another table, or a data set on the hub."""
    return on_hub(path) is not None or _is_json_lines(path) or is_table(path)


def rows_of_table(path: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read what `has_columns`, one row at a time: the columns, ``file`` and, of JSON lines, ``line``.

    A cell that is not a number (NaN) is an empty one, None: it must not become the word "nan".

    Raises:
        ValueError: for what `json_lines` and `read_table` refuse, or a cell of bytes, whose text nobody knows.
    """
    lines = _is_json_lines(path)
    rows = json_lines(path, columns) if lines else ({"file": str(path)} | row for row in read_table(path, columns))
    for row in rows:
        for column in columns:
            cell = row[column]
            require(
                not isinstance(cell, bytes),
                f"column {column!r} of {path} holds bytes, not text: {str(cell)[:60]}; write it as strings",
            )
            if isinstance(cell, float) and math.isnan(cell):
                row[column] = None
        yield row


def json_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the objects of a JSON Lines file, one at a time: the columns, and with them ``file`` and ``line``.

    Raises:
        ValueError: naming file and line, for what is not UTF-8 or not a JSON object, lacks a column, or has another
            type there than the lines before.
    """
    kinds: dict[str, type] = {}  # the type of each column, as its first value has it
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            text = _decoded(line, where)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
            require(isinstance(record, dict), f"{where} is a JSON {type(record).__name__}, not an object {{...}}")
            if "\\ud" in text.lower():  # half of a surrogate pair, perhaps, which is no text
                _check_text(json.dumps(record, ensure_ascii=False), where)
            for column in columns:
                check_column(where, column, record)
                kind = type(record[column])
                if kind is not type(None) and kinds.setdefault(column, kind) is not kind:
                    before = kinds[column].__name__
                    raise ValueError(f"{where}: column {column!r} is {kind.__name__}, {before} in the lines before")
            yield {"file": str(path), "line": number} | {column: record[column] for column in columns}


def read_documents(source: Source, split: Split, columns: Columns) -> Iterator[dict[str, Any]]:
    """The rows of `load_documents`, one at a time: what a stream of documents is made of."""
    check_name("split", split, get_args(Split))
    total = chosen = written = 0
    for document in _documents(source, columns):
        total += 1
        written += bool(str(_content(document, columns) or "").strip())
        if belongs(document, split, columns):
            chosen += 1
            yield document
    require(written > 0, f"there is no text in {_called(source)}: {'it is empty' if not total else 'all is blank'}")
    if not chosen:
        raise ValueError(
            f"none of the {total} documents falls into split {split!r}: a document's content decides; "
            "give more documents, or load split='all' and divide them yourself"
        )


def belongs(document: dict[str, Any], split: Split, columns: Columns) -> bool:
    """Whether a document lies in a split."""
    content = _content(document, columns)
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return split in ("all", split_of(text))


def _content(document: dict[str, Any], columns: Columns) -> Any:
    """What decides the split."""
    return document[columns if isinstance(columns, str) else columns[0]]


def _called(source: Source) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else ", ".join(map(str, source))


def files_of(source: Source, endings: tuple[str, ...] = (*TEXTS, *JSON_LINES)) -> list[Any]:
    """The files, and folders of saved data sets, that a source stands for; a name on the hub stands for itself.

    Args:
        source: see `load_documents`.
        endings: of the files that a folder stands for, in small letters.
    """
    if isinstance(source, str) and source in _BUNDLED:
        return [_BUNDLED[source]]
    if on_hub(source):
        return [source]
    if not isinstance(source, (str, os.PathLike)):
        return [path for one in source for path in files_of(one, endings)]
    path = Path(source)
    if path.is_dir() and not is_table(path):
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(endings) and p.is_file())
        # As patterns do: copies that editors and version control keep are no texts.
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        require(len(found) > 0, f"the folder {str(path)!r} holds no {' or '.join(endings)} file")
        return found
    found = (
        [path] if path.exists() else sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    )
    for one in found:
        require(
            one.suffix.lower() not in _PACKED or not has_columns(one.with_suffix("")),
            f"{one} is a packed table: unpack it first",
        )
    if not found:
        is_name = path.name == str(source) and not path.suffix
        bundled = f"; the bundled texts are: {', '.join(_BUNDLED)}" if is_name else ""
        raise FileNotFoundError(f"there is no file {str(path)!r}{bundled}")
    return found


def _is_json_lines(path: Any) -> bool:
    return on_hub(path) is None and path.suffix.lower() in JSON_LINES


def _decoded(data: bytes, where: str) -> str:
    """Decode UTF-8 and drop a byte order mark."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte {error.start} (counted from 0) is {data[error.start]:#04x}; convert the file"
        ) from None


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {error.object[error.start]!a}, half a character: repair the file") from None

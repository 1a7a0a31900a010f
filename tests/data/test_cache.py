import hashlib
import json
import os
import shutil
import threading
import tracemalloc
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from unmask.data import RowStream, bpe_tokenizer, character_tokenizer, load_text, prompt_rows, tokenize
from unmask.data import cache as caches
from unmask.data.cache import data_key
from unmask.data.documents import split_of

TEXTS = ["one two three", "four five", "six"]

pytestmark = pytest.mark.filterwarnings("ignore:.*were cut")


def as_dataset(*texts):
    return datasets.Dataset.from_dict({"text": list(texts), "other": list(range(len(texts)))})


def stream_of(texts, seen=None):
    """A stream that counts what was taken from it."""

    def generate():
        for text in texts:
            if seen is not None:
                seen.append(text)
            yield {"text": text}

    return datasets.IterableDataset.from_generator(generate)


@pytest.fixture
def letters():
    return character_tokenizer(alphabet="27")


def folders(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir())


def test_cached_rows_are_the_rows(letters, tmp_path):
    for packing in ("packed", "document"):
        expected = tokenize(as_dataset(*TEXTS), "text", letters, 5, packing)
        made, read = (tokenize(as_dataset(*TEXTS), "text", letters, 5, packing, cache=tmp_path) for _ in range(2))
        assert made[:] == read[:] == expected[:]
        assert made.features == expected.features
        (file,) = read.cache_files
        assert datasets.Dataset.from_file(file["filename"])[:] == expected[:]  # without this library


def test_a_second_call_reads_and_makes_nothing(letters, tmp_path, monkeypatch):
    tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    monkeypatch.setattr(caches, "_write", lambda *_: pytest.fail("made again"))
    tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    changed = as_dataset(*TEXTS).map(lambda row: {"other": row["other"] + 1}, load_from_cache_file=False)
    tokenize(changed, "text", letters, 5, cache=tmp_path)  # a column that the rows do not depend on


def test_any_change_changes_the_key(letters, tmp_path):
    """Each call differs from the first in one thing."""
    names = ["c", "text"]
    data = as_dataset(*TEXTS).add_column("c", TEXTS)
    bpe = [bpe_tokenizer(TEXTS, size) for size in (258, 259)]
    other_end = character_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    swapped = type(other_end)(other_end.tokenizer, other_end.eos_token_id - 1, other_end.mask_token_id)
    base = {"dataset": data, "column": "text", "tokenizer": letters, "length": 5, "packing": "document"}
    changes = [
        {},
        {"dataset": as_dataset(*TEXTS[::-1])},
        {"dataset": as_dataset(*TEXTS, "seven")},
        {"dataset": as_dataset("one two thref", *TEXTS[1:])},
        {"dataset": as_dataset(TEXTS[0] + TEXTS[1], TEXTS[2])},
        {"column": names[0]},
        *({"tokenizer": tokenizer} for tokenizer in (*bpe, other_end, swapped)),
        {"length": 6},
        {"packing": "packed"},
        {"packing": "sentence"},
        {"ending": "untrained"},
        {"ending": "eos_as_padding"},
        {"version": "1"},
        {"version": "2"},
    ]
    for number, change in enumerate(changes, 1):
        tokenize(**base | change, cache=tmp_path)
        assert len(folders(tmp_path)) == number, change
    for change in changes:
        tokenize(**base | change, cache=tmp_path)
    assert len(folders(tmp_path)) == len(changes)
    for folder in tmp_path.glob("*/about.json"):
        assert json.loads(folder.read_text())["key"]["format"] == caches.FORMAT


def test_another_format_is_another_key(letters, tmp_path, monkeypatch):
    tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    monkeypatch.setattr(caches, "FORMAT", caches.FORMAT + 1)
    tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    assert len(folders(tmp_path)) == 2


def test_prompt_rows_have_keys_of_their_own(letters, tmp_path):
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "response": ["c", "d"]})
    changes = [{}, {"length": 8}, {"prompt": "{prompt} "}, {"response": "x {response}"}, {"too_long": "cut"}]
    for number, change in enumerate([*changes, {"ending": "untrained"}], 1):
        prompt_rows(data, letters, **{"length": 9} | change, cache=tmp_path)
        assert len(folders(tmp_path)) == number


def change_a_token(path, later_ns):
    """Flip one bit of a file, the same size as before, and set its time of change."""
    before, data = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    data[data.index(np.array([15, 14, 5], np.int16).tobytes())] ^= 1  # "one", as letters are numbered
    path.write_bytes(data)
    os.utime(path, ns=(before + later_ns, before + later_ns))


def damage(folder, how):
    rows, about = folder / "rows.arrow", folder / "about.json"
    if how == "cut short":
        rows.write_bytes(rows.read_bytes()[:-20])
    elif how == "one bit":
        change_a_token(rows, later_ns=10**6)
    elif how == "no rows":
        rows.unlink()
    elif how == "no about":
        about.unlink()
    elif how == "half an about":
        about.write_text(about.read_text()[:40])
    else:
        about.write_text(about.read_text().replace('"length": 5', '"length": 6'))


@pytest.mark.parametrize("how", ["cut short", "one bit", "no rows", "no about", "half an about", "other about"])
def test_damaged_caches_are_made_again(letters, tmp_path, how):
    expected = tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)[:]
    (name,) = folders(tmp_path)
    damage(tmp_path / name, how)
    with pytest.warns(UserWarning, match="are not used: .*; they are made again"):
        assert tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)[:] == expected
    assert tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)[:] == expected
    assert folders(tmp_path) == [name]


def test_opening_a_cache_reads_no_rows_and_takes_no_lock(letters, tmp_path, monkeypatch):
    expected = tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)[:]
    monkeypatch.setattr(caches, "_sha256", lambda _: pytest.fail("hashed again"))
    monkeypatch.setattr(caches, "FileLock", lambda _: pytest.fail("locked"))
    assert tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)[:] == expected


def test_a_copy_is_hashed_once(letters, tmp_path, monkeypatch):
    expected = tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path / "a")[:]
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # times of change are lost
    (file,) = (tmp_path / "b").glob("*/rows.arrow")
    os.utime(file, ns=(0, 0))
    hashed, sha256 = [], caches._sha256
    monkeypatch.setattr(caches, "_sha256", lambda path: hashed.append(path) or sha256(path))
    monkeypatch.setattr(caches, "_write", lambda *_: pytest.fail("made again"))
    for _ in range(3):
        assert tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path / "b")[:] == expected
    assert hashed == [file]


def test_what_keeps_size_and_time_is_trusted_and_the_hash_is_there_to_tell(letters, tmp_path):
    tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    (file,) = tmp_path.glob("*/rows.arrow")
    recorded = json.loads(file.with_name("about.json").read_text())["sha256"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recorded
    change_a_token(file, later_ns=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(as_dataset(*TEXTS), "text", letters, 5, cache=tmp_path)
    assert hashlib.sha256(file.read_bytes()).hexdigest() != recorded


def test_a_cache_that_was_not_finished_is_not_used(letters, tmp_path):
    def broken():
        yield {"text": "one two"}
        raise OSError("the connection is gone")

    stream = datasets.IterableDataset.from_generator(broken)
    with pytest.raises(OSError, match="connection"):
        tokenize(stream, "text", letters, 5, cache=tmp_path, version="1")
    assert folders(tmp_path) == []
    rows = tokenize(stream_of(TEXTS), "text", letters, 5, cache=tmp_path, version="1")
    assert rows[:] == tokenize(as_dataset(*TEXTS), "text", letters, 5)[:]
    (name,) = folders(tmp_path)
    # Killed in the middle: what it left is in the way of nobody, and is not taken for a cache.
    partial = tmp_path / f"{name}.partial"
    (tmp_path / name).rename(partial)
    again = tokenize(stream_of(TEXTS), "text", letters, 5, cache=tmp_path, version="1")
    assert again[:] == rows[:]
    assert folders(tmp_path) == [name]


@pytest.mark.filterwarnings("ignore:the cached rows")
@pytest.mark.parametrize("damaged", [False, True])
def test_ranks_that_ask_at_once_make_it_once(letters, tmp_path, damaged):
    if damaged:
        tokenize(stream_of(TEXTS), "text", letters, 5, cache=tmp_path, version="1")
        damage(tmp_path / folders(tmp_path)[0], "cut short")
    seen, found = [], [None] * 4

    def ask(i):
        found[i] = tokenize(stream_of(TEXTS, seen), "text", letters, 5, cache=tmp_path, version="1")[:]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == TEXTS
    assert all(rows == found[0] for rows in found)


def test_streams_are_read_once_and_need_a_name(letters, tmp_path):
    seen = []
    with pytest.raises(ValueError, match="version="):
        tokenize(stream_of(TEXTS, seen), "text", letters, 5, cache=tmp_path)
    assert seen == []
    streamed = tokenize(stream_of(TEXTS, seen), "text", letters, 5, cache=tmp_path, version="1")
    assert streamed[:] == tokenize(as_dataset(*TEXTS), "text", letters, 5)[:]
    tokenize(stream_of(TEXTS, seen), "text", letters, 5, cache=tmp_path, version="1")
    assert seen == TEXTS
    assert tokenize(stream_of(TEXTS), "text", letters, 5)[:] == streamed[:]  # in memory


def test_a_version_does_not_make_one_of_two_data_sets(letters, tmp_path):
    """Named alike, but another data set, or another split of it; what `datasets` knows no name for is the user's."""
    texts = {(name, split): f"{name} {split}" for name in ("red", "blue") for split in ("train", "test")}
    for (name, split), text in texts.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    for streaming in (True, False):
        for number, ((name, split), text) in enumerate(2 * list(texts.items())):
            data = datasets.load_dataset(
                str(tmp_path / name), split=split, streaming=streaming, cache_dir=str(tmp_path / "hub")
            )
            data = data.filter(lambda row: True)  # keeps the names
            cache = tmp_path / f"cache {streaming}"
            rows = tokenize(data, "text", letters, 99, cache=cache, version="1")
            assert [letters.decode(row) for row in rows["tokens"]] == [text]
            assert len(folders(cache)) == min(number + 1, len(texts))
    cache = tmp_path / "unnamed"
    for text in ("one", "two"):  # as the docstring of tokenize says
        rows = tokenize(stream_of([text]), "text", letters, 99, cache=cache, version="1")
        assert letters.decode(rows["tokens"][0]) == "one"


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_memory_does_not_grow_with_the_data(letters, tmp_path, monkeypatch, packing):
    """Peak memory of making a cache, for 1.2 and 4.8 MB of text, and what was read ahead of what was written."""
    monkeypatch.setattr(caches, "_BATCH", 2**16)
    text, ahead = "word " * 400, []
    record_batch = caches._arrow_batch

    def noting(rows, schema):
        batch = record_batch(rows, schema)
        ahead.append(2000 * len(seen) - len(batch.column("tokens").values) - sum(written))
        written.append(len(batch.column("tokens").values))
        return batch

    monkeypatch.setattr(caches, "_arrow_batch", noting)
    peaks = []
    for documents in (600, 2_400):
        seen, written = [], []
        arrow = pa.total_allocated_bytes()
        tracemalloc.start()
        rows = tokenize(
            stream_of([text] * documents, seen),
            "text",
            letters,
            128,
            packing,
            cache=tmp_path,
            version=str(documents),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - arrow < 2**20  # the rows lie on disk
        assert len(seen) == documents
        assert len(rows) >= documents
    if packing == "packed":
        assert max(ahead) < 2000 * 2 * 256  # characters read, not yet written: two batches of documents
    assert peaks[1] < 1.2 * peaks[0] + 2**18


def test_random_access_is_the_same_from_disk_as_from_memory(letters, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_BATCH", 64)  # many Arrow batches
    texts = [("abc " * (i % 9 + 1)).strip() for i in range(200)]
    memory, disk = (
        RowStream(tokenize(as_dataset(*texts), "text", letters, 16, "document", cache=cache), seed=3)
        for cache in (None, tmp_path)
    )
    for _ in range(7):
        one, other = memory.take(61), disk.take(61)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.row, other.row)
    resumed = RowStream(disk.dataset, seed=3)
    resumed.load_state_dict(memory.state_dict())
    assert torch.equal(resumed.take(10).tokens, memory.take(10).tokens)


def test_load_text_follows_the_files(letters, tmp_path):
    file = tmp_path / "a.jsonl"
    cache = tmp_path / "cache"
    lines = [json.dumps({"text": text, "title": text[::-1]}) for text in TEXTS]

    def load(**options):
        return load_text(file, **{"split": "all", "tokenizer": letters, "length": 5} | options)

    file.write_text("\n".join(lines))
    assert load(cache=cache)[:] == load()[:]
    load(cache=cache)
    assert len(folders(cache)) == 1
    load(cache=cache, column="title")
    load(cache=cache, split=split_of(TEXTS[0]))
    assert len(folders(cache)) == 3
    file.write_text("\n".join(lines[:2]))
    assert load(cache=cache)[:] == load()[:]
    assert len(folders(cache)) == 4
    file.rename(tmp_path / "b.jsonl")  # content counts, not names
    file = tmp_path / "b.jsonl"
    load(cache=cache)
    assert len(folders(cache)) == 4


def test_the_bundled_texts_are_the_same_from_a_cache(letters, tmp_path):
    made = load_text("sotu", "test", tokenizer=letters, length=512, cache=tmp_path)
    assert np.array_equal(
        np.concatenate(made.with_format("numpy")["tokens"][:50]),
        np.concatenate(load_text("sotu", "test", tokenizer=letters, length=512).with_format("numpy")["tokens"][:50]),
    )


def test_data_keys_see_content_alone():
    columns = ["text"]
    key = data_key(as_dataset(*TEXTS), columns, None)
    assert key == data_key(as_dataset(*TEXTS).select(range(3)), columns, None)
    assert key == data_key(datasets.Dataset.from_list([{"text": text} for text in TEXTS]), columns, None)
    assert key == data_key(as_dataset(*TEXTS, "more").select([0, 1, 2]), columns, None)
    others = [as_dataset(*TEXTS[:2]), as_dataset(TEXTS[0], "four five\nsix"), as_dataset(None, *TEXTS)]
    keys = {data_key(data, columns, None) for data in others} | {key, data_key(others[0], columns, "version")}
    assert len(keys) == 5
    with pytest.raises(TypeError, match="choose a split"):
        data_key(datasets.DatasetDict(train=others[0]), columns, "version")

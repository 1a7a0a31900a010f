"""Rows that somebody has made, as a stream: the same rows, parts, sizes and weights, and nothing in a cache."""

from __future__ import annotations

import sys
from dataclasses import replace

import datasets
import pytest
import torch
from datasets import Dataset, IterableDataset

from unmask.config import from_json, to_json
from unmask.recipes import RowsOnDisk, TextModel, rows
from unmask.token_rates import GIFT

MANY = 90


def made(count: int = MANY, **columns) -> Dataset:
    """Rows of a vocabulary of eleven; late ones are longer and have the largest token."""
    tokens = [[i % 7, i % 5, (3 * i) % 8, *[10] * (i > 80)] for i in range(count)]
    return Dataset.from_dict(
        {"tokens": tokens, "maskable": [[False, *[True] * (len(t) - 1)] for t in tokens], **columns}
    )


def as_stream() -> IterableDataset:
    """What a function of a user's may give."""
    return made().to_iterable_dataset(num_shards=3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where `datasets` keeps what it reads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(params=["parquet", "jsonl", "arrow", "folder"])
def source(request, tmp_path) -> str:
    """The rows in a file, or in a folder of `save_to_disk`."""
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        made().to_parquet(path)
    elif request.param == "jsonl":
        made().to_json(path)
    else:
        made().save_to_disk(tmp_path / "rows.folder")
    if request.param == "arrow":
        (tmp_path / "rows.folder" / "data-00000-of-00001.arrow").rename(path)
    return str(path)


def listed(found) -> list[tuple[list[int], list[bool]]]:
    return [(list(row["tokens"]), list(row["maskable"])) for row in found]


def test_a_stream_has_the_same_rows_parts_and_sizes_and_keeps_nothing(source, cache):
    streamed = RowsOnDisk(source, divided=True, stream=True)
    assert isinstance(streamed.load(), IterableDataset)
    run = rows(data=streamed)
    assert run.data.load() is not run.data.load()
    found = listed(streamed.load()), listed(streamed.held_out())
    assert not list(cache.rglob("*.arrow"))
    whole = RowsOnDisk(source, divided=True)
    assert found == (listed(whole.load()), listed(whole.held_out()))
    assert sum(map(len, found)) == MANY
    assert (run.model, run.training) == ((other := rows(data=whole)).model, other.training)
    assert (run.model.vocab_size, run.model.positions) == (12, 4)
    assert listed(replace(streamed, held_out_rows=2).held_out()) == found[1][:2]


def test_held_out_files_are_streamed_too(tmp_path):
    made().to_parquet(tmp_path / "train.parquet")
    made(9).to_parquet(tmp_path / "test.parquet")
    data = RowsOnDisk(str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet"), stream=True)
    assert (len(listed(data.load())), len(data.held_out())) == (MANY, 9)


def test_a_function_may_give_a_stream():
    data = from_json(to_json(RowsOnDisk(as_stream, divided=True, stream=True)), [sys.modules[__name__]])
    assert listed(data.load()) == listed(RowsOnDisk(made, divided=True).load())
    assert listed(RowsOnDisk(made, divided=True, stream=True).load()) == listed(data.load())
    with pytest.raises(ValueError, match=r"gives a stream: say --data\.stream"):
        RowsOnDisk(as_stream).load()


def test_kept_rows_are_read_and_divided_once():
    """However often training and evaluations ask; a stream is read anew by each who asks."""
    for stream, once in ((False, True), (True, False)):
        reads = []
        data = RowsOnDisk(lambda reads=reads: reads.append(1) or made(), divided=True, stream=stream)
        for _ in range(3):
            data.load()
            data.held_out()
        assert (len(reads) == 1) == once


def test_what_a_stream_lacks_is_named():
    for found, message in (
        (lambda: IterableDataset.from_generator(lambda: iter(())), "holds no row"),
        (lambda: made().remove_columns("maskable").to_iterable_dataset(), r"no column maskable; it has \['tokens'\]"),
        (lambda: iter(()), r"no datasets\.Dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            RowsOnDisk(found, stream=True).load()


def run_of(data: RowsOnDisk):
    run = rows(data=data, steps=4, batch_size=8)
    training = replace(run.training, warmup_steps=1, evaluate_every=2, tracker="none", threads=1, precision="fp32")
    return replace(run, model=replace(run.model, layers=1, width=16, heads=2), training=training)


def test_a_stream_trains_the_same_weights(tmp_path, weights_in):
    """Of fewer rows than a block."""
    sources = RowsOnDisk(made, divided=True), RowsOnDisk(as_stream, divided=True, stream=True)
    one, other = (weights_in(run_of(data).train(tmp_path / str(data.stream))) for data in sources)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_entropies_are_refused_of_a_stream_before_a_model_is_built(tmp_path, monkeypatch):
    """Unless the rows have them already."""
    run = run_of(RowsOnDisk(as_stream, divided=True, stream=True))
    run = replace(run, masking=replace(run.masking, mask=GIFT()))
    monkeypatch.setattr(TextModel, "build", lambda self: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=r"made before training.*leave out --data\.stream"):
        run.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    guided = made(guide=[[0.5] * len(tokens) for tokens in made()["tokens"]])
    replace(run, data=replace(run.data, source=lambda: guided)).check(tmp_path / "run")

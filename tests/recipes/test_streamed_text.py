"""Texts as a stream: the rows, sizes and weights that the same texts give otherwise, and nothing that is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from datasets import IterableDataset

from unmask.data.streamed import StreamedRows
from unmask.parts.sizes import enough_rows, fitting_model, fitting_steps
from unmask.recipes import TextData, TextModel, sotu, text
from unmask.runs.advise import seconds_a_step
from unmask.token_rates import GIFT


@pytest.fixture
def folder(tmp_path):
    """Forty texts, most in one file of JSON lines."""
    where = tmp_path / "texts"
    where.mkdir()
    texts = [f"the {chr(97 + i % 26) * 3} cat sat on mat {i} " * (1 + i % 9) for i in range(40)]
    (where / "a.jsonl").write_text("\n".join(json.dumps({"text": value}) for value in texts[:36]))
    for i, value in enumerate(texts[36:]):
        (where / f"b{i}.txt").write_text(value)
    return where


def pair(source, **fields):
    data = TextData(str(source), length=16, **fields)
    return data, replace(data, stream=True)


def listed(rows):
    return [{name: list(map(int, values)) for name, values in row.items()} for row in rows]


@pytest.mark.parametrize(
    "fields",
    [{"divided": "passages"}, {"packing": "apart", "first_given": True, "vocabulary": "bpe", "vocab_size": 270}],
    ids=str,
)
def test_a_stream_has_the_same_rows(folder, fields):
    whole, streamed = pair(folder, **fields)
    assert isinstance(streamed.load(), IterableDataset)
    assert listed(streamed.load()) == listed(whole.load())
    assert streamed.tokenizer().fingerprint == whole.tokenizer().fingerprint
    assert listed(streamed.held_out()) == listed(replace(whole, held_out_rows=10**6).held_out())
    few = replace(streamed, held_out_rows=3).held_out()
    assert listed(few) == listed(streamed.held_out())[:3]


def test_the_first_token_of_each_document_is_given(folder):
    data = pair(folder, packing="apart", first_given=True)[0]
    for row in data.load():
        first = [True, *(a != b for a, b in zip(row["document"], row["document"][1:], strict=False))]
        assert [not flag for flag in row["maskable"]] == first


def test_what_is_chosen_from_a_stream_is_what_is_chosen_from_the_texts(folder):
    whole, streamed = (text(data=data) for data in pair(folder, vocabulary="auto", divided="auto"))
    assert (streamed.model, streamed.training) == (whole.model, whole.training)
    assert replace(streamed.data, stream=False) == whole.data
    for length, batch_size in ((16, None), (512, None), (128, 1000)):
        enough, more = (rows := enough_rows(length, batch_size)), 9 * rows
        models = [fitting_model(30, 29, length, count * length) for count in (enough, more)]
        assert models[0] == models[1]
        steps = [fitting_steps(count, length, models[0], batch_size=batch_size) for count in (enough, more)]
        assert steps[0] == steps[1]


def run_of(data, **training):
    base = sotu("standard")
    model = TextModel(layers=1, width=16, heads=2, positions=16)
    settings = {"steps": 6, "batch_size": 8, "evaluate_every": 3, "tracker": "none", "threads": 1, **training}
    return replace(base, data=data, model=model, training=replace(base.training, **settings))


@pytest.mark.slow
def test_a_run_on_a_stream_keeps_no_rows_and_trains_the_same_weights(folder, tmp_path, weights_in):
    """Of fewer rows than a block. Evaluations differ in which held-out rows they are of."""
    found = [weights_in(run_of(data).train(tmp_path / str(data.stream))) for data in pair(folder)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_place_deep_in_a_stream_of_texts_is_found_again(folder, same):
    data = pair(folder)[1]
    first, again = (StreamedRows(data.load(), block=16) for _ in range(2))
    for n in (100, 101):
        first.take(n)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.epoch == 0
    for n in (5, 100, 400):
        assert same(first.take(n), again.take(n))
    assert first.epoch >= 1


@pytest.mark.slow
def test_the_command_line_streams_says_so_and_times_a_step(command, folder, tmp_path):
    words = ["train", "text", "--data.source", str(folder), "--data.stream", "--data.length=16", "--steps=2"]
    words += ["--batch-size=4", "--tracker=none", "--threads=1", "--model.layers=1", "--model.width=16"]
    words += ["--model.heads=2", "--evaluate-every=2"]
    code, _, err = command(*words, "--out", str(tmp_path / "run"))
    assert code == 0, err
    assert "rows from a stream of up to 16 tokens" in err
    code, _, err = command("evaluate", str(tmp_path / "run"), "--split=train", "--rows=4", "--samples=1")
    assert code == 0, err
    assert seconds_a_step(run_of(pair(folder)[1]), steps=1) > 0


def test_what_cannot_be_streamed_says_so_before_a_model_is_built(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TextModel, "build", lambda self: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=r"keeps no rows.*leave out --data\.stream or --data\.cache"):
        TextData(str(folder), stream=True, cache=str(tmp_path))
    run = run_of(pair(folder)[1])
    guided = replace(run, masking=replace(run.masking, mask=GIFT()))
    with pytest.raises(ValueError, match=r"made before training.*leave out --data\.stream"):
        guided.train(tmp_path / "run")

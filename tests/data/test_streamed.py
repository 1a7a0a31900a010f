"""Rows of a stream: every row once an epoch, exact resumes, disjoint ranks; rows fetched ahead."""

from __future__ import annotations

import json
import threading

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from unmask import Blockwise, IndependentMasking, MaskedMean, ProgressiveUnmasking, RowImportance, RowStream
from unmask.data.checks import check_rows
from unmask.data.streamed import StreamedRows, rows_of

ROWS = 50


def _write(folder, rows=ROWS, files=3):
    """JSON lines of rows of 4 to 8 tokens; the first is the row's own number."""
    paths = []
    for number in range(files):
        lines = [
            json.dumps({"tokens": [row, *range(3 + row % 5)], "maskable": [True] * (4 + row % 5)})
            for row in range(number * rows // files, (number + 1) * rows // files)
        ]
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    return [str(path) for path in paths]


@pytest.fixture
def stream(tmp_path):
    paths = _write(tmp_path)

    def build(shuffled=False, **options) -> StreamedRows:
        dataset = datasets.load_dataset(
            "json", data_files=paths, split="train", streaming=True, cache_dir=str(tmp_path / "none")
        )
        dataset = dataset.shuffle(seed=3, buffer_size=20) if shuffled else dataset
        return StreamedRows(dataset, block=16, **options)

    return build


def _drawn(rows, takes=12, n=7):
    return [rows.take(n) for _ in range(takes)]


def _numbers(batches):
    return [number for batch in batches for number in batch.tokens[:, 0].tolist()]


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_epoch_has_every_row_once_in_another_order_than_the_next(stream, shuffled):
    rows = stream(shuffled)
    epochs = [_numbers([rows.take(1) for _ in range(ROWS)]) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(ROWS))
    assert epochs[0] != epochs[1]
    assert rows.epoch == 1
    batch = stream(shuffled).take(ROWS)
    assert sorted(batch.row.tolist()) == list(range(ROWS))
    assert batch.draw.tolist() == [0] * ROWS


def test_a_stream_no_longer_than_a_block_is_dealt_as_rows_on_the_disk_are(rows, same):
    pair = RowStream(rows, 5), StreamedRows(rows.to_iterable_dataset(), 5)
    for n in (7, 1, len(rows), 13, 2 * len(rows)):
        one, other = (stream.take(n) for stream in pair)
        assert same(one, other)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("done", [0, 1, 2, 7, 8, 11])
def test_a_resumed_stream_goes_on_with_the_same_rows(stream, same, shuffled, done):
    """Within a block, at its end, in later epochs; with a shuffle buffer, that the stream's own state lacks, too."""
    whole, cut = stream(shuffled), stream(shuffled)
    wanted = _drawn(whole)
    _drawn(cut, done)
    state = json.loads(json.dumps(cut.state_dict()))
    again = stream(shuffled)
    again.load_state_dict(state)
    found = _drawn(again, len(wanted) - done)
    assert all(same(one, other) for one, other in zip(found, wanted[done:], strict=True))
    assert {**again.state_dict(), "at": ""} == {**whole.state_dict(), "at": ""}  # ways to say a place differ


def test_ranks_share_the_rows_and_four_go_on_where_two_were(stream):
    one = stream()
    wanted = [_numbers([one.take(8)]) for _ in range(9)]
    pair = [stream(rank=rank, world_size=2) for rank in range(2)]
    for step in range(4):
        assert _numbers(rows.take(4) for rows in pair) == wanted[step]
    four, counts = [stream(rank=rank, world_size=4) for rank in range(4)], [1, 1, 4, 2]
    for rows in four:
        rows.load_state_dict(pair[0].state_dict())
    for step in range(4, 9):
        assert _numbers(rows.take(n, counts) for rows, n in zip(four, counts, strict=True)) == wanted[step]


def test_what_changed_or_needs_rows_again_is_refused(stream, tmp_path, rows):
    begun = stream()
    begun.take(20)
    state = begun.state_dict()
    with pytest.raises(ValueError, match="had seed 0"):
        stream(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="read its rows from a stream"):
        RowStream(rows).load_state_dict(state)
    with pytest.raises(ValueError, match="had a data set on disk"):
        stream().load_state_dict(RowStream(rows).state_dict())
    with pytest.raises(ValueError, match="read from its beginning on"):
        RowStream(begun.stream)
    with pytest.raises(ValueError, match="do not come back"):
        begun.rows(torch.arange(2))
    (tmp_path / "1.jsonl").write_bytes((tmp_path / "2.jsonl").read_bytes())
    with pytest.raises(ValueError, match="gives other rows"):
        stream().load_state_dict(state)


def test_an_empty_stream_and_one_without_columns_say_so():
    with pytest.raises(ValueError, match="has no row"):
        StreamedRows(IterableDataset.from_generator(lambda: iter(()))).take(1)
    with pytest.raises(ValueError, match="lacks the column maskable"):
        StreamedRows(Dataset.from_dict({"tokens": [[1]]}).to_iterable_dataset()).take(1)


@pytest.mark.parametrize("masking", [IndependentMasking(), ProgressiveUnmasking(stages=3)], ids=["standard", "puma"])
def test_a_run_on_a_stream_resumes_to_the_same_weights(trainer, state_of, stop_at, rows, tmp_path, masking):
    """Progressive chains included: their pool keeps its rows itself."""
    settings = {"masking": masking, "objective": MaskedMean(), "steps": 8, "checkpoint_every": 3, "evaluate_every": 1}
    streamed = rows.to_iterable_dataset(num_shards=3)
    whole = trainer("whole", dataset=streamed, **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", dataset=streamed, evaluate=stop_at(5), **settings).train()
    assert state_of(trainer("cut", dataset=streamed, **settings).train(resume=True)) == state_of(whole)


def test_a_bad_row_far_into_a_stream_is_named_when_it_comes(rows):
    bad = rows.select(range(20)).to_list()
    bad[17]["tokens"] = [99, *bad[17]["tokens"][1:]]
    stream = Dataset.from_list(bad).to_iterable_dataset()
    few = StreamedRows(stream, check=lambda block, first: check_rows(block, 10, 11, first=first), block=8)
    few.take(16)
    with pytest.raises(ValueError, match="row 17 of the data set holds a token outside"):
        few.take(1)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("done", [0, 3, 16, 40])
def test_a_resumed_stream_raises_what_the_check_of_its_block_says(stream, same, shuffled, done):
    """And goes on as if nothing had been, once the check is content."""
    whole = stream(shuffled)
    whole.take(done)
    state, content = whole.state_dict(), done == 0  # nothing is read yet

    def check(block, first):
        if not content:
            raise ValueError(f"rows from {first} on are bad")

    again = stream(shuffled, check=check)
    if not content:
        with pytest.raises(ValueError, match="are bad"):
            again.load_state_dict(state)
        content = True
    again.load_state_dict(state)
    assert same(again.take(30), whole.take(30))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("at", [0, 10, 60])
def test_readers_of_one_data_set_do_not_move_one_another(stream, shuffled, at):
    """As two arms of one process, or a resume beside the run that was saved: a data set keeps its place itself."""
    alone = stream(shuffled)
    expected = _numbers([alone.take(5) for _ in range(30)])
    first, second = (StreamedRows(alone.stream, block=16) for _ in range(2))
    for _ in range(at // 5):
        first.take(5)
    second.load_state_dict(first.state_dict())
    drawn = [[reader.take(5) for reader in (first, second)] for _ in range(30 - at // 5)]
    for batches in zip(*drawn, strict=True):
        assert _numbers(batches) == expected[at:]


def test_a_reader_begins_at_the_beginning_while_another_comes_to_the_end(monkeypatch):
    """What counted the rows of the one, in its thread, counted those of the other, which found none."""
    reading, end, prepare = threading.Event(), threading.Event(), IterableDataset._prepare_ex_iterable_for_iteration

    def generate():
        yield {"tokens": [1, 2], "maskable": [True, True]}
        reading.set()
        end.wait(10)

    def prepared(dataset):
        made = prepare(dataset)
        end.set()
        first._reading.wait()
        return made

    dataset = IterableDataset.from_generator(generate)
    first = StreamedRows(dataset)
    reading.wait(10)
    monkeypatch.setattr(IterableDataset, "_prepare_ex_iterable_for_iteration", prepared)
    assert StreamedRows(dataset).take(1).tokens.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "error", [KeyError("shard_idx"), IndexError(), TypeError(), RuntimeError("of another version")]
)
def test_a_state_that_is_of_no_use_to_the_stream_costs_reading_and_nothing_else(stream, same, monkeypatch, error):
    whole, again = stream(), stream()
    whole.take(20)
    plain = again.stream.load_state_dict

    def load(state):
        if state:
            raise error
        plain(state)

    monkeypatch.setattr(again.stream, "load_state_dict", load)
    again.load_state_dict(whole.state_dict())
    assert same(again.take(30), whole.take(30))


def test_rows_of_tells_streams_from_data_sets(rows):
    assert isinstance(rows_of(rows.to_iterable_dataset(), 0, 0, 1), StreamedRows)
    assert type(rows_of(rows, 0, 0, 1)) is RowStream
    with pytest.raises(ValueError, match="gives each once an epoch"):
        rows_of(rows.to_iterable_dataset(), 0, 0, 1, RowImportance())


# Rows fetched ahead


def test_rows_fetched_ahead_are_the_rows(rows, same):
    plain, ahead = RowStream(rows, 5), RowStream(rows, 5)
    for expected, n in ((4, 4), (4, 4), (4, 7), (0, 3), (5, 5)):
        ahead.expect(expected)
        state = ahead.state_dict()
        assert state == plain.state_dict()
        assert same(ahead.take(n), plain.take(n))
    ahead.expect(4)
    ahead.load_state_dict({**state, "position": 2})
    plain.load_state_dict({**state, "position": 2})
    assert same(ahead.take(4), plain.take(4))


def test_rows_are_fetched_by_another_thread_and_what_it_meets_is_raised_here():
    tokens = [[1, 2]] * 8
    rows = Dataset.from_dict({"tokens": tokens, "maskable": [[True, True]] * 7 + [[False, False]]})
    stream, threads = RowStream(rows), []
    plain = stream.rows
    stream.rows = lambda *numbers: (threads.append(threading.current_thread()), plain(*numbers))[1]

    def draw_all():
        for _ in range(4):
            stream.expect(2)
            stream.take(2)

    with pytest.raises(ValueError, match="row 7 of the data set has no maskable position") as error:
        draw_all()
    assert threading.main_thread() not in threads
    assert any(entry.name == "batch_of" for entry in error.traceback)  # where it went wrong, in the thread
    stream.expect(2)
    stream._ahead[2].wait()
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("masking", [IndependentMasking(), Blockwise(IndependentMasking(), size=2)], ids=repr)
def test_who_draws_once_fetches_nothing_more_and_who_draws_again_its_next_rows(rows, masking):
    process = masking.start(RowStream(rows), 4)
    process.draw()
    assert process.rows._ahead is None
    process.draw()
    np.testing.assert_array_equal(process.rows._ahead[2].result().row, RowStream(rows).take(12).row[8:])

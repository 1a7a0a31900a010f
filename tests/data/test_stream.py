import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import RowStream

lengths_of_rows = st.lists(st.integers(1, 6), min_size=1, max_size=9)


@given(lengths=lengths_of_rows, calls=st.lists(st.integers(0, 7), min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_epoch_deals_every_row_once_however_the_rows_are_taken(stream_of, lengths, calls, seed):
    stream = stream_of(lengths, seed=seed)
    parts = [stream.take(n) for n in calls]
    row = torch.cat([part.row for part in parts]).tolist()
    draw = torch.cat([part.draw for part in parts]).tolist()
    assert len(row) == sum(calls) == stream.position
    assert stream.epoch == sum(calls) / len(lengths)
    for start in range(0, len(row), len(lengths)):
        epoch = row[start : start + len(lengths)]
        assert len(set(epoch)) == len(epoch)
        assert set(draw[start : start + len(lengths)]) == {start // len(lengths)}
        if len(epoch) == len(lengths):
            assert set(epoch) == set(range(len(lengths)))


def test_each_epoch_and_each_seed_has_an_order_of_its_own(stream_of):
    epochs = stream_of([2] * 40).take(200).row.view(5, 40).tolist()
    other = stream_of([2] * 40, seed=1).take(40).row.tolist()
    orders = {tuple(epoch) for epoch in [*epochs, other, list(range(40))]}
    assert len(orders) == 7


@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(lengths=lengths_of_rows, data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_ranks_in_rank_order_are_the_stream_of_one_rank(stream_of, same, joined, world_size, lengths, data):
    whole = stream_of(lengths, seed=5)
    ranks = [stream_of(lengths, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(4):
        counts = data.draw(st.lists(st.integers(0, 6), min_size=world_size, max_size=world_size))
        if data.draw(st.booleans()):  # equal shares need no counts
            counts = counts[:1] * world_size
            parts = [stream.take(counts[0]) for stream in ranks]
        else:
            parts = [stream.take(n, counts) for stream, n in zip(ranks, counts, strict=True)]
        expected = whole.take(sum(counts))
        parts = [part for part in parts if len(part)]
        if parts:
            assert same(joined(parts), expected)
        assert {stream.position for stream in ranks} == {whole.position}


@given(before=st.integers(0, 30), after=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_a_resumed_stream_goes_on_with_the_same_rows(stream_of, same, before, after):
    stream = stream_of([3, 1, 4, 1, 5, 2, 6], seed=2)
    stream.take(before)
    state = stream.state_dict()
    expected = stream.take(after)
    resumed = stream_of([3, 1, 4, 1, 5, 2, 6], seed=2)
    resumed.take(3)
    resumed.load_state_dict(state)
    assert same(resumed.take(after), expected)


def test_a_stream_saved_on_one_rank_goes_on_on_two(stream_of, same, joined):
    stream = stream_of([3, 1, 4, 1, 5])
    stream.take(7)
    ranks = [stream_of([3, 1, 4, 1, 5], rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(stream.state_dict())
    assert same(joined([rank.take(3) for rank in ranks]), stream.take(6))


@given(lengths=lengths_of_rows, prompt=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_rows_arrive_as_they_are_stored_and_padding_is_never_maskable(dataset_of, lengths, prompt):
    dataset = dataset_of(lengths, prompt=prompt, gaps=True)
    batch = RowStream(dataset).take(2 * len(lengths))
    for i, row in enumerate(batch.row.tolist()):
        real = len(dataset[row]["tokens"])
        assert batch.attention[i].tolist() == [True] * real + [False] * (batch.length - real)
        assert batch.tokens[i, :real].tolist() == dataset[row]["tokens"]
        assert batch.maskable[i, :real].tolist() == dataset[row]["maskable"]
    assert not (batch.maskable & ~batch.attention).any()
    assert batch.effective_length.tolist() == [lengths[row] for row in batch.row.tolist()]
    assert batch.weight.tolist() == [1.0] * len(batch)
    assert batch.tokens.dtype == torch.int64


def test_padding_can_be_added_and_cut_but_never_real_tokens(stream_of, same):
    batch = stream_of([3, 5]).take(2)
    assert same(batch.padded(9).padded(batch.length), batch)
    with pytest.raises(ValueError, match="real tokens"):
        batch.padded(batch.length - 1)


def test_rows_put_in_place_of_others_leave_the_rest_as_they_were(stream_of, same):
    old, new = stream_of([2, 3, 4]).take(3), stream_of([6, 1], seed=1).take(2)
    rows, mixed = torch.tensor([2, 0]), old.padded(new.length)
    mixed.put(rows, new)
    assert same(mixed[1:2], old[1:2].padded(mixed.length))
    assert same(mixed[rows], new)
    assert same(new, stream_of([6, 1], seed=1).take(2))


def test_rows_of_another_length_are_not_put_in_place_of_others(stream_of):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        stream_of([2, 3, 4]).take(3).put(torch.tensor([1]), stream_of([6]).take(1))


def columns(tokens, maskable):
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": maskable})


def test_data_sets_that_cannot_work_are_refused(dataset_of):
    with pytest.raises(ValueError, match="column maskable"):
        RowStream(datasets.Dataset.from_dict({"tokens": [[1]]}))
    with pytest.raises(ValueError, match="maskable and tokens"):
        RowStream(datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="empty"):
        RowStream(columns([], []))
    for rank, world_size in ((1, 1), (-1, 2), (2, 2)):
        with pytest.raises(ValueError, match="rank"):
            RowStream(dataset_of([1]), rank=rank, world_size=world_size)
    with pytest.raises(ValueError, match=r"row 1 .* no maskable"):
        RowStream(columns([[1, 2], [3, 4]], [[True, False], [False, False]])).take(2)


@pytest.mark.parametrize(
    "maskable",
    [
        [[True, True], [True, True, True]],  # short by one, long by one: the padded shapes agree
        [[True, True, True, True], [True, True]],
    ],
)
def test_columns_of_different_length_in_a_row_are_refused(maskable):
    with pytest.raises(ValueError, match="differ in length"):
        RowStream(columns([[1, 2, 3], [4, 5]], maskable)).take(2)


def test_wrong_shares_are_refused(stream_of):
    stream = stream_of([1, 2, 3], rank=1, world_size=2)
    for n, counts in ((-1, None), (2, [2, 1]), (1, [1]), (1, [1, 1, 1])):
        with pytest.raises(ValueError, match="cannot take"):
            stream.take(n, counts)
    assert stream.position == 0


def test_the_state_of_another_stream_is_refused(stream_of):
    stream = stream_of([1, 2, 3])
    with pytest.raises(ValueError, match="seed 1, this one has 0"):
        stream.load_state_dict(stream_of([1, 2, 3], seed=1).state_dict())
    with pytest.raises(ValueError, match="number of rows 2, this one has 3"):
        stream.load_state_dict(stream_of([1, 2]).state_dict())


@pytest.mark.parametrize("other", [[3, 2, 1], [1, 2, 4]], ids=["another order", "another row"])
def test_the_state_of_as_many_other_rows_is_refused(stream_of, other):
    stream = stream_of([1, 2, 3])
    with pytest.raises(ValueError, match=r"as many rows .* others or in another order"):
        stream.load_state_dict(stream_of(other).state_dict())
    state = stream_of([1, 2, 3], rank=1, world_size=2).state_dict()
    stream.load_state_dict(state)
    del state["sample"]  # as states were saved before
    stream.load_state_dict(state)

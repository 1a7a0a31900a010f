"""The values that travel between data, process, model and objective."""

from __future__ import annotations

import torch

from unmask import MaskedBatch, Scores, TokenBatch


def _masked(stream, rows: int, **changes) -> MaskedBatch:
    clean = stream.take(rows)
    facts = {"rate": torch.rand(rows, 1).double(), "density": torch.rand(rows, 1).double()}
    return MaskedBatch(clean, clean.maskable, **(facts | changes))


def test_concatenated_parts_of_a_batch_are_the_batch(stream_of):
    batch = _masked(stream_of([3, 5, 2, 4]), 4)
    joined = MaskedBatch.concatenated([batch[:1], batch[1:3], batch[3:]])
    assert torch.equal(joined.masked, batch.masked)
    assert torch.equal(joined.rate, batch.rate)
    for name in ("tokens", "maskable", "attention", "row", "draw", "weight"):
        assert torch.equal(getattr(joined.clean, name), getattr(batch.clean, name)), name


def test_narrower_parts_are_padded_with_what_is_no_token(stream_of):
    short, long = stream_of([2]).take(1), stream_of([6]).take(1)
    joined = TokenBatch.concatenated([short, long])
    assert joined.length == long.length
    assert torch.equal(joined.tokens[0], short.padded(long.length).tokens[0])
    assert not joined.attention[0, short.length :].any()
    assert not joined.maskable[0, short.length :].any()


def test_what_one_part_lacks_the_whole_lacks(stream_of):
    known, unknown = _masked(stream_of([3, 3]), 2), _masked(stream_of([3]), 1, density=None)
    joined = MaskedBatch.concatenated([known, unknown])
    assert joined.density is None
    assert joined.rate is not None
    assert Scores.concatenated([Scores(torch.zeros(1, 2)), Scores(torch.ones(1, 3))]).margin is None

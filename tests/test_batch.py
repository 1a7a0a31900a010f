"""The values that travel between data, process, model and objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
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


def test_padding_is_of_the_last_block_of_its_row(stream_of):
    """Block numbers never decrease along a row, whatever is put beside it."""
    parts = [_masked(stream_of([length]), 1) for length in (2, 6)]
    numbers = [torch.arange(part.clean.length)[None] // 2 for part in parts]
    joined = MaskedBatch.concatenated([replace(p, block=n) for p, n in zip(parts, numbers, strict=True)])
    assert joined.block.tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3]]


def test_what_one_part_lacks_the_whole_lacks(stream_of):
    known, unknown = _masked(stream_of([3, 3]), 2), _masked(stream_of([3]), 1, density=None)
    joined = MaskedBatch.concatenated([known, unknown])
    assert joined.density is None
    assert joined.rate is not None
    assert Scores.concatenated([Scores(torch.zeros(1, 2)), Scores(torch.ones(1, 3))]).margin is None


def test_padding_comes_and_goes_and_no_token_does(stream_of):
    batch = stream_of([2, 5]).take(2)
    wider = batch.padded(batch.length + 3)
    assert not wider.attention[:, batch.length :].any()
    again = wider.padded(batch.length)
    for name in ("tokens", "maskable", "attention", "row"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert batch.padded(batch.length) is batch
    with pytest.raises(ValueError, match=f"real tokens beyond position {batch.length - 1}"):
        batch.padded(batch.length - 1)


def test_rows_that_are_put_replace_those_rows_and_no_other(stream_of):
    stream = stream_of([3] * 6)
    batch, new = stream.take(4), stream.take(2)
    before = batch.map(torch.clone)
    batch.put(torch.tensor([3, 1]), new)
    for name in ("tokens", "row", "weight"):
        kept, put = getattr(batch, name)[[0, 2]], getattr(batch, name)[[3, 1]]
        assert torch.equal(kept, getattr(before, name)[[0, 2]])
        assert torch.equal(put, getattr(new, name))


def test_what_weights_are_made_of_stays_on_the_host(stream_of):
    batch = _masked(stream_of([3, 5]), 2)
    moved = batch.to("meta")
    assert {moved.masked.device.type, moved.clean.tokens.device.type} == {"meta"}
    assert torch.equal(moved.rate, batch.rate)
    assert torch.equal(moved.density, batch.density)
    assert batch.to(None) is batch


def test_no_float64_is_moved_whatever_the_rows_carry(stream_of):
    """At any depth: a batch holds rows, and rows may hold a guide and the mean length of the data."""
    batch = _masked(stream_of([3, 5]), 2)
    guide, length = torch.rand(batch.masked.shape, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    batch = replace(batch, clean=replace(batch.clean, guide=guide, expected_length=length, document=guide.long()))
    places = {}
    batch.to("meta").map(lambda tensor: places.setdefault(tensor.dtype, set()).add(tensor.device.type) or tensor)
    assert places[torch.float64] == {"cpu"}
    assert "meta" in places[torch.bool]


@pytest.mark.parametrize("excluded", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_statistics_of_the_softmax_in_fp32_or_better(dtype, excluded):
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    given, wide = logits.clone(), logits.double().clone()
    if excluded is not None:
        wide[..., excluded] = -torch.inf
    found = Scores.from_logits(logits, excluded, ("margin", "entropy"))
    share = wide.softmax(-1)
    best, second = share.topk(2, -1).values.unbind(-1)
    expected = {"log_confidence": best.log(), "margin": best - second, "entropy": torch.special.entr(share).sum(-1)}
    for name, value in expected.items():
        assert getattr(found, name).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(getattr(found, name).double(), value, atol=1e-12 if dtype == torch.float64 else 1e-6)
    assert torch.equal(logits, given)
    assert Scores.from_logits(logits, needs=()).entropy is None

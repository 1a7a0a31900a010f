"""Rows of blocks and rows trained from left to right in one batch: the autoregressive co-loss."""

from functools import partial

import pytest
import torch

from unmask import ELBO, Bernoulli, Blockwise, ExactCount, IndependentMasking, ProgressiveUnmasking
from unmask.testing import TabularWorld

LENGTHS = [6, 4, 7, 5, 6, 3, 8, 6]


def drawn(stream_of, causal, world_size=1, **options):
    masking = Blockwise(IndependentMasking(**options), 3, causal=causal)
    return [masking.start(stream_of(LENGTHS, rank=r, world_size=world_size), 8).draw() for r in range(world_size)]


@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=repr)
@pytest.mark.parametrize(("causal", "count"), [(0.25, 2), (0.5, 4), (0.3, 2)])
def test_a_share_of_the_rows_is_causal_and_the_others_are_as_ever(stream_of, rule, causal, count):
    (batch,) = drawn(stream_of, causal, mask=rule)
    (plain,) = drawn(stream_of, 0.0, mask=rule)
    place = torch.arange(batch.clean.length)
    rows = (batch.block == place).all(1)
    assert int(rows.sum()) == count
    assert torch.equal(batch.masked[rows], batch.clean.maskable[rows])
    assert (ELBO().weights(batch)[rows] == batch.masked[rows]).all()
    for name in ("masked", "rate", "density", "block"):
        assert torch.equal(getattr(batch, name)[~rows], getattr(plain, name)[~rows])


def test_their_loss_is_the_exact_negative_log_likelihood():
    world = TabularWorld.random(length=4, vocab_size=2)
    strings, probability = world.strings()
    nll = partial(world.nll, block=torch.arange(4))
    rows = world.rows(strings)
    assert torch.allclose(nll(rows, rows.maskable).sum(1), -probability.log())


def test_what_has_no_place_for_them_is_refused(stream_of):
    with pytest.raises(ValueError, match="a chain has no place"):
        Blockwise(ProgressiveUnmasking(), 2, causal=0.5)
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        Blockwise(IndependentMasking(), 2, causal=1.0)
    with pytest.raises(ValueError, match="less than one"):
        drawn(stream_of, 0.1)

"""Rows of blocks and rows trained from left to right in one batch: the autoregressive co-loss."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import (
    CART,
    ELBO,
    Bernoulli,
    Blockwise,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
)
from unmask.testing import TabularWorld

LENGTHS = [6, 4, 7, 5, 6, 3, 8, 6]


def drawn(stream_of, causal, world_size=1, **options):
    masking = Blockwise(IndependentMasking(**options), 3, causal=causal)
    return [masking.start(stream_of(LENGTHS, rank=r, world_size=world_size), 8).draw() for r in range(world_size)]


def causal_rows(batch):
    """[B] bool, rows whose every position is a block."""
    return (batch.block == torch.arange(batch.clean.length)).all(1)


@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=repr)
@pytest.mark.parametrize(("causal", "count"), [(0.25, 2), (0.5, 4), (0.3, 2)])
def test_a_share_of_the_rows_is_causal_and_the_others_are_as_ever(stream_of, rule, causal, count):
    (batch,) = drawn(stream_of, causal, mask=rule)
    (plain,) = drawn(stream_of, 0.0, mask=rule)
    rows = causal_rows(batch)
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
    for objective in (RowMean(), MaskedMean(), CART(base=MaskedMean())):
        with pytest.raises(ValueError, match=r"share of 0\.5: use objective ELBO"):
            objective.check(Blockwise(IndependentMasking(), 2, causal=0.5))
    ELBO().check(Blockwise(IndependentMasking(), 2, causal=0.5))


@given(causal=st.floats(0, 0.99), batch=st.integers(1, 9), steps=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_shares_add_up_over_the_steps(stream_of, causal, batch, steps, seed):
    """A share of less than a row is not lost, whatever the batch, nor when the run is resumed."""
    masking = Blockwise(IndependentMasking(), 3, causal=causal)
    process, count = masking.start(stream_of([6] * 5, seed=seed), batch), 0
    for step in range(steps):
        if step == steps // 2:
            state, process = process.state_dict(), masking.start(stream_of([6] * 5, seed=seed), batch)
            process.load_state_dict(state)
        count += int(causal_rows(process.draw()).sum())
    assert count == int(causal * batch * steps + 1e-9)


@pytest.mark.parametrize("size", [2, 4, 64])
def test_a_causal_row_weighs_what_any_other_does(stream_of, size):
    """Under the ELBO, summed over its tokens, in expectation: here exactly, by exact counts stratified."""
    masking = Blockwise(IndependentMasking(mask=ExactCount(), coupling="stratified"), size, causal=0.5)
    process, weight = masking.start(stream_of([8] * 4), 64), torch.zeros(2)
    for _ in range(40):
        batch = process.draw()
        causal = causal_rows(batch)
        each = ELBO().weights(batch).sum(1)
        weight += torch.stack([each[causal].sum(), each.sum()])
    assert float(weight[0] / weight[1]) == pytest.approx(0.5, rel=0.05)

"""What a chain draws from noise, and what a policy is shown: laws of the pure chain."""

import pytest
import torch

from unmask import ProgressiveUnmasking, Scores
from unmask.noise import Purpose

ROWS = 2000


def flat(units) -> Scores:
    """Of a model that is unsure of everything alike."""
    zeros = torch.zeros(units.tokens.shape)
    return Scores(zeros, zeros, zeros)


@pytest.fixture(scope="module")
def rows(token_batch):
    """Many rows of one length."""

    def build(length, count=ROWS):
        return token_batch(torch.zeros(count, length, dtype=torch.int64))

    return build


def advanced(chain, units, stages):
    """[stages, N, L] what is revealed as a chain goes on from stage 0."""
    stage = torch.zeros(len(units), dtype=torch.int64)
    found = [chain.entry(units, stage)]
    for _ in range(stages - 1):
        revealed, stage, _ = chain.advance(units, found[-1], stage, flat(units))
        found.append(revealed)
    return torch.stack(found)


def test_no_policy_is_shown_the_loss_of_hidden_tokens(rows):
    """Proposition 2 of PUMA (arXiv 2602.10314) needs a policy that depends on what is visible alone."""
    units, shown = rows(16, 20), []

    def peeking(scores, noise):
        shown.append(scores.nll)
        return noise if scores.nll is None else scores.nll

    chain = ProgressiveUnmasking(policy=peeking).chain(4, 0)
    stage = torch.zeros(20, dtype=torch.int64)
    hidden = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    one, other = (
        chain.advance(units, chain.entry(units, stage), stage, Scores(torch.zeros(20, 16), nll=nll))[0]
        for nll in (hidden, -hidden)
    )
    assert torch.equal(one, other)
    assert shown == [None, None]


def test_counts_and_random_orders_come_from_the_seed(rows):
    units = rows(24, 40)
    one, same, other = (advanced(ProgressiveUnmasking(policy="random").chain(4, s), units, 3) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one.sum(2) != other.sum(2)).any()
    for stage in (1, 2):  # and not from what was revealed at first alone
        alike = one[0].sum(1) == other[0].sum(1)
        assert (one[stage] != other[stage])[alike].any()


def test_where_in_its_stage_a_chain_stands_is_drawn_anew_for_each(rows):
    """Early in one stage, it is as often early as late in the next."""
    length, stages = 400, 4
    chain = ProgressiveUnmasking().chain(stages, 0)
    place = advanced(chain, rows(length), stages).sum(2).double() * stages / length
    place -= torch.arange(stages)[:, None]
    assert float(place.min()) >= 0
    assert float(place.max()) <= 1
    correlation = torch.corrcoef(place) - torch.eye(stages)
    assert float(correlation.abs().max()) < 5 / ROWS**0.5


def test_the_order_of_a_random_policy_is_drawn_anew_for_each_stage(rows):
    """With one order for all stages, the first of what is hidden would always be the next to go."""
    length = 12
    units, chain = rows(length), ProgressiveUnmasking(stages=length, policy="random").chain(length, 0)
    revealed = advanced(chain, units, length)
    order = chain.uniforms(units, length, Purpose.REVEAL, torch.zeros(ROWS, dtype=torch.int64))
    for step in (3, 6, 9):
        hidden, new = ~revealed[step - 1], revealed[step] & ~revealed[step - 1]
        first = order.masked_fill(~hidden, -1).argmax(1, keepdim=True)
        expected = new.sum(1).double() / hidden.sum(1)  # a choice of so many at random holds the first
        found = new.gather(1, first)[:, 0].double()
        assert abs(float((found - expected).mean())) < 5 * float((expected * (1 - expected)).mean() / ROWS) ** 0.5

"""The loop with a real transformer: invariances, blocks, and no work for what cannot change."""

import random
from contextlib import suppress
from dataclasses import fields, replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from unmask import Decoding, MaskedDiffusionLM, generate

V, MASK, L = 14, 13, 12

WAYS = {
    "one a step": Decoding(),
    "sampled": Decoding("random", temperature=1.0, top_p=0.9),
    "threshold": Decoding("margin", threshold=0.2, temperature=0.7),
    "schedule": Decoding("entropy", steps=4, schedule="cosine"),
    "blocks": Decoding("confidence", 2, block_size=5, temperature=1.0),
    "causal blocks": Decoding("random", block_size=4, causal_blocks=True, temperature=1.0),
    "remasking": Decoding(steps=14, remasking=0.4, temperature=1.0),
    "remasking in blocks": Decoding(
        "random", steps=6, block_size=4, remasking=0.8, remasking_rule="rescale", temperature=1.0
    ),
    "all at once": Decoding(
        "random", steps=3, threshold=0.3, block_size=7, remasking=0.5, temperature=1.0, top_p=0.8
    ),
}


def test_padding_may_hold_any_number(model, ragged):
    batch = ragged([12, 5, 9])
    filled = replace(batch, tokens=batch.tokens.masked_fill(~batch.attention, -100))
    made, wanted = generate(model, filled), generate(model, batch)
    assert torch.equal(made.tokens[batch.attention], wanted.tokens[batch.attention])
    assert (made.tokens[~batch.attention] == -100).all()


@pytest.mark.parametrize("decoding", WAYS.values(), ids=WAYS)
def test_company_order_padding_and_batch_size_change_nothing(model, ragged, decoding):
    batch = ragged([12, 5, 9, 12, 7, 1, 10])
    whole = generate(model, batch, decoding, seed=3)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    others = {
        "order": (generate(model, batch[order], decoding, seed=3), order),
        "some": (generate(model, batch[2:4], decoding, seed=3), torch.tensor([2, 3])),
        "padding": (generate(model, batch.padded(L + 9), decoding, seed=3), torch.arange(7)),
        "pairs": (generate(model, batch, decoding, seed=3, batch_size=2), torch.arange(7)),
        "singly": (generate(model, batch, decoding, seed=3, batch_size=1), torch.arange(7)),
    }
    for name, (other, rows) in others.items():
        assert torch.equal(other.tokens[:, :L], whole.tokens[rows]), name
        assert torch.equal(other.step[:, :L], whole.step[rows]), name
        torch.testing.assert_close(other.confidence[:, :L], whole.confidence[rows], rtol=0, atol=1e-6)
    assert others["pairs"][0].forwards == others["singly"][0].forwards == whole.forwards
    assert not torch.equal(generate(model, batch, WAYS["sampled"], seed=4).tokens, whole.tokens)


def test_confidence_in_single_precision_stays_within_rounding(model, ragged):
    batch, single = ragged([12, 5, 9, 12]), model.float()
    try:
        whole = generate(single, batch, Decoding("left_to_right"))
        for row in range(4):
            alone = generate(single, batch[row : row + 1].padded(20), Decoding("left_to_right"))
            torch.testing.assert_close(alone.confidence[0, :L], whole.confidence[row], rtol=0, atol=1e-5)
    finally:
        model.double()


@given(
    lengths=st.lists(st.integers(1, L), min_size=1, max_size=4),
    way=st.sampled_from(list(WAYS)),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_decoding_ends_with_every_maskable_position_filled_and_no_other(
    model, ragged, trajectory, lengths, way, seed
):
    batch, decoding = ragged(lengths, seed), WAYS[way]
    made, masks = trajectory(model, batch, decoding, seed=seed)
    assert not masks[-1].any()
    assert all((masked & ~batch.maskable).sum() == 0 for masked in masks)
    assert torch.equal(made.tokens[~batch.maskable], batch.tokens[~batch.maskable])
    assert (made.tokens[batch.maskable] != MASK).all()
    assert torch.equal(made.step >= 0, batch.maskable)
    size = decoding.block_size or L
    for row in range(len(lengths)):
        open_blocks = [masked[row].view(-1).nonzero()[:, 0] // size for masked in masks]
        for before, after in pairwise(open_blocks):
            if len(after):
                assert before.min() <= after.min()  # a full block stays full
        for number in range(-(-L // size)):  # nothing of a block is revealed before the earlier ones are full
            later = batch.maskable[row] & (torch.arange(L) // size > number)
            here = torch.arange(L) // size == number
            for masked in masks[:-1]:
                if masked[row][here].any():
                    assert torch.equal(masked[row][later], batch.maskable[row][later])
    if decoding.steps is not None:
        assert len(masks) - 1 <= decoding.steps * -(-L // size)


def decodings():
    """Every setting with every other that it may stand beside."""
    return st.builds(
        lambda pace, schedule, threshold, size, causal, remasking, temperature, policy: Decoding(
            policy,
            **({"steps": pace, "schedule": schedule} if pace < 10 else {"tokens_per_step": pace - 9}),
            threshold=threshold,
            block_size=size,
            causal_blocks=causal and size is not None,
            remasking=remasking,
            temperature=temperature,
        ),
        st.integers(1, 13),
        st.sampled_from(["linear", "cosine"]),
        st.sampled_from([None, 0.3, 0.7]),
        st.sampled_from([None, 1, 3, 5]),
        st.booleans(),
        st.sampled_from([0.0, 0.5]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from(["confidence", "random", "left_to_right"]),
    )


SETTINGS = {
    "policy": ("confidence", "margin", "entropy", "random", "left_to_right"),
    "tokens_per_step": (1, 3),
    "steps": (None, 1, 4, 9),
    "schedule": ("linear", "cosine"),
    "threshold": (None, 0.3, 0.7),
    "temperature": (0.0, 1.0),
    "top_p": (1.0, 0.7),
    "block_size": (None, 1, 3, 5),
    "causal_blocks": (False, True),
    "remasking": (0.0, 0.5),
    "remasking_rule": ("cap", "rescale"),
}


def covering() -> list[Decoding]:
    """A few decodings in which any two values of two settings meet that may stand together."""
    chance, pairs = random.Random(0), {}
    for _ in range(4000):
        chosen = {name: chance.choice(values) for name, values in SETTINGS.items()}
        with suppress(ValueError):  # some settings exclude others
            pairs[Decoding(**chosen)] = set(combinations(chosen.items(), 2))
    left, found = set().union(*pairs.values()), []
    while left:
        found.append(max(pairs, key=lambda decoding: len(pairs[decoding] & left)))
        left -= pairs[found[-1]]
    return found


def check_blocks(trajectory, model, batch, decoding, seed):
    """Everything is revealed; no block takes more steps than it may; after each as much is as its own clock says."""
    made, masks = trajectory(model, batch, decoding, seed=seed)
    assert not masks[-1].any()
    size = decoding.block_size or L
    for row in range(len(batch)):
        ticks = dict.fromkeys(range(-(-L // size)), 0)
        for before, after in pairwise(mask[row] for mask in masks):
            if not before.any():
                continue
            number = int(before.nonzero()[0]) // size
            here = (torch.arange(L) // size == number) & batch.maskable[row]
            whole, shown, now = int(here.sum()), int((here & ~before).sum()), int((here & ~after).sum())
            goal = int(decoding.target(*(torch.tensor([n]) for n in (ticks[number], shown, whole))))
            if decoding.threshold is None:
                assert now == goal
            elif decoding.remasking == 0:  # what is more than the schedule's is sure
                unsure = before & ~after & (made.confidence[row] <= decoding.threshold)
                assert now >= goal >= shown + int(unsure.sum())
            ticks[number] += 1
        if decoding.steps is not None:
            assert max(ticks.values()) <= decoding.steps


def test_every_block_has_a_clock_of_its_own_under_every_pair_of_settings(model, ragged, trajectory):
    assert set(SETTINGS) == {field.name for field in fields(Decoding)}
    decodings = covering()
    assert len(decodings) < 40
    for seed, decoding in enumerate(decodings):
        check_blocks(trajectory, model, ragged([12, 7, 10], seed), decoding, seed)


@given(decoding=decodings(), end=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_row_that_stops_at_its_end_has_the_text_that_decoding_on_would_give(model, ragged, decoding, end, seed):
    batch = ragged([12, 9, 12, 5], seed)
    whole, stopped = (generate(model, batch, decoding, seed=seed, end_token_id=e) for e in (None, end))
    assert stopped.forwards <= whole.forwards
    assert torch.equal(stopped.tokens[~batch.maskable], batch.tokens[~batch.maskable])
    assert (stopped.tokens[batch.maskable] != MASK).all()
    for row in range(len(batch)):
        ends = (batch.maskable[row] & (whole.tokens[row] == end)).nonzero()[:, 0]
        until = int(ends[0]) + 1 if len(ends) else L
        assert torch.equal(stopped.tokens[row, :until], whole.tokens[row, :until])
        assert torch.equal(stopped.step[row, :until], whole.step[row, :until])
        rest = batch.maskable[row] & (stopped.step[row] < 0)  # left undecoded
        assert (stopped.tokens[row][rest] == end).all()


class _SureAtFirst(nn.Module):
    """A backbone that is sure of the first half of a row and knows nothing of the second."""

    def forward(self, input_ids, attention_mask=None):
        sure = (torch.arange(L) < L // 2)[:, None] * nn.functional.one_hot(torch.arange(L), V)
        return BaseModelOutput(last_hidden_state=20.0 * sure.expand(len(input_ids), -1, -1))


def test_a_block_that_the_threshold_fills_early_leaves_its_steps_to_no_other(token_batch):
    output = nn.Linear(V, V, bias=False)
    nn.init.eye_(output.weight)
    batch, half = token_batch(torch.zeros(1, L, dtype=torch.int64)), L // 2
    decoding = Decoding(steps=half, block_size=half, threshold=0.9)
    made = generate(MaskedDiffusionLM(_SureAtFirst(), output, MASK), batch, decoding)
    assert made.step[0, :half].tolist() == [0] * half
    assert made.step[0, half:].sort().values.tolist() == list(range(1, half + 1))


class _Ends(nn.Module):
    """A backbone for which every second token is an end, 5, and the others are 4; it counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, input_ids, attention_mask=None):
        self.rows += len(input_ids)
        token = (4 + torch.arange(input_ids.shape[1]) % 2).expand(input_ids.shape)
        return BaseModelOutput(last_hidden_state=nn.functional.one_hot(token, V).float())


def test_a_row_that_ended_costs_no_more_forwards(token_batch):
    output = nn.Linear(V, V, bias=False)
    nn.init.eye_(output.weight)
    model, batch = MaskedDiffusionLM(_Ends(), output, MASK), token_batch(torch.zeros(3, L, dtype=torch.int64))
    made = generate(model, batch, Decoding("left_to_right"), end_token_id=5)
    assert made.forwards == model.backbone.rows == made.revealed == 3 * 2
    assert made.step.tolist() == [[0, 1] + [-1] * (L - 2)] * 3
    assert made.tokens.tolist() == [[4] + [5] * (L - 1)] * 3


@pytest.mark.parametrize("causal", [False, True])
def test_later_blocks_are_seen_unless_blocks_are_causal(model, token_batch, causal):
    """The prompt of the last block changes; only decoding with causal blocks must not notice earlier."""
    maskable = torch.arange(L).expand(20, L) < 8
    first = torch.randint(0, MASK, (20, L), generator=torch.Generator().manual_seed(0))
    other = torch.where(maskable, first, (first + 5) % MASK)
    decoding = Decoding("left_to_right", block_size=4, causal_blocks=causal)
    a, b = (generate(model, token_batch(tokens, maskable), decoding) for tokens in (first, other))
    assert torch.equal(a.tokens[:, :8], b.tokens[:, :8]) is causal


def test_one_block_is_no_block(model, ragged):
    batch = ragged([12, 6, 9])
    plain = generate(model, batch, Decoding("confidence", 2))
    for causal in (False, True):
        one = generate(model, batch, Decoding("confidence", 2, block_size=L, causal_blocks=causal))
        assert torch.equal(one.tokens, plain.tokens)
        assert torch.equal(one.step, plain.step)


def test_only_positions_that_can_be_chosen_are_predicted(model, token_batch):
    batch, counts = token_batch(torch.zeros(2, L, dtype=torch.int64)), []
    hook = model.head.output.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    try:
        generate(model, batch, Decoding("confidence", 3, block_size=6))
        assert counts == [12, 6, 12, 6]  # the masked positions of the current block
        counts.clear()
        generate(model, batch, Decoding("right_to_left", 4))
        assert counts == [8, 8, 8]  # an order known before the forward: the chosen alone
    finally:
        hook.remove()


def test_steps_beyond_the_tokens_cost_nothing_without_remasking(model, ragged, trajectory):
    batch = ragged([12, 7])
    made, masks = trajectory(model, batch, Decoding(steps=50))
    assert made.forwards == made.revealed
    assert len(masks) - 1 <= 50


def test_a_maskable_position_in_the_padding_is_refused(model, ragged):
    batch = ragged([12, 7])
    with pytest.raises(ValueError, match="maskable but not attended to"):
        generate(model, batch.__class__(**{**vars(batch), "maskable": torch.ones_like(batch.maskable)}))
    with pytest.raises(ValueError, match="batch_size"):
        generate(model, batch, batch_size=0)

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask import Decoding, MaskedDiffusionLM, generate
from unmask.policies import POLICIES

V, MASK, L = 7, 6, 8


class PositionTable(nn.Module):
    """A denoiser whose logits are known: those of position i are row i of a table, plus a pull from the left.

    With `context`, a visible left neighbour adds its own row of a second table, so the order matters.
    """

    def __init__(self, seed=0, context=0.0, sharpness=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = sharpness * torch.randn(32, V, generator=generator, dtype=torch.float64)
        self.pull = context * torch.randn(V, V, generator=generator, dtype=torch.float64)
        self.seen = 0

    def forward(self, input_ids, attention_mask=None):
        self.seen += len(input_ids)
        hidden = self.table[: input_ids.shape[1]].expand(len(input_ids), -1, -1)
        left = nn.functional.pad(self.pull[input_ids[:, :-1]], (0, 0, 1, 0))
        return SimpleNamespace(last_hidden_state=hidden + left)


def model(**options):
    output = nn.Linear(V, V, bias=False, dtype=torch.float64)
    nn.init.eye_(output.weight)
    return MaskedDiffusionLM(PositionTable(**options), output, MASK)


@pytest.fixture(scope="module")
def rows(token_batch):
    """Make rows with random clues; `lengths` of them are maskable."""

    def build(lengths, seed=0, length=L):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, MASK, (len(lengths), length), generator=generator)
        order = torch.rand(tokens.shape, generator=generator).argsort(1).argsort(1)
        return token_batch(tokens, maskable=order < torch.tensor(lengths)[:, None])

    return build


lengths_of_rows = st.lists(st.integers(0, L), min_size=1, max_size=5)


@given(
    lengths=lengths_of_rows,
    policy=st.sampled_from(list(POLICIES)),
    tokens_per_step=st.integers(1, 4),
    threshold=st.sampled_from([None, 0.3, 0.7]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=50, deadline=None)
def test_every_maskable_position_is_filled_and_nothing_else_touched(rows, lengths, seed, **options):
    denoiser, batch = model(seed=seed, context=1.0), rows(lengths, seed)
    result = generate(denoiser, batch, Decoding(**options), seed=seed)
    assert torch.equal(result.tokens[~batch.maskable], batch.tokens[~batch.maskable])
    assert (result.tokens[batch.maskable] != MASK).all()
    assert torch.equal(result.step >= 0, batch.maskable)
    assert result.revealed == sum(lengths)
    assert (result.confidence[~batch.maskable] == 1).all()
    steps = result.step.amax(1) + 1
    k = options["tokens_per_step"]
    if options["threshold"] is None:
        assert steps.tolist() == [math.ceil(n / k) for n in lengths]
        for row, n in enumerate(lengths):  # exactly k a step, the rest in the last
            counts = torch.bincount(result.step[row][batch.maskable[row]], minlength=1).tolist()
            assert counts == [k] * (n // k) + [n % k] * (n % k > 0) or n == 0
    else:
        assert all(a <= math.ceil(n / k) for a, n in zip(steps.tolist(), lengths, strict=True))
    # A row costs a forward for each step until it is finished, and none after.
    assert result.forwards == int(steps.sum()) == denoiser.backbone.seen


def test_one_token_a_step_costs_one_forward_a_token(rows):
    result = generate(model(), rows([3, 8, 0, 5]))
    assert result.forwards_per_token == 1
    assert int(result.step.max()) + 1 == 8


def test_what_the_maskable_positions_hold_is_not_looked_at(rows, token_batch):
    batch = rows([4, 7, 8])
    other = token_batch(torch.where(batch.maskable, 0, batch.tokens), maskable=batch.maskable)
    for temperature in (0.0, 1.0):
        a, b = (generate(model(context=1.0), x, Decoding(temperature=temperature)) for x in (batch, other))
        assert torch.equal(a.tokens, b.tokens)


PRIORITIES = {
    "confidence": lambda p: p.amax(-1),
    "margin": lambda p: p.topk(2).values[:, 0] - p.topk(2).values[:, 1],
    "entropy": lambda p: -torch.special.entr(p).sum(-1),
    "left_to_right": lambda p: -torch.arange(L),
    "right_to_left": lambda p: torch.arange(L),
}


@pytest.mark.parametrize("policy", PRIORITIES)
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_the_order_of_reveal_is_the_policys(rows, policy, tokens_per_step):
    """Without context the scores never change, so the order is that of the first step."""
    denoiser, batch = model(seed=1), rows([8, 5])
    table = denoiser.backbone.table[:L].clone()
    table[:, MASK] = -torch.inf
    order = PRIORITIES[policy](table.softmax(-1)).argsort(descending=True).tolist()
    result = generate(denoiser, batch, Decoding(policy, tokens_per_step))
    for row in range(2):
        masked = [p for p in order if batch.maskable[row, p]]
        assert [int(result.step[row, p]) for p in masked] == [i // tokens_per_step for i in range(len(masked))]
    best = table.argmax(-1).expand(2, L)
    assert torch.equal(result.tokens[batch.maskable], best[batch.maskable])
    torch.testing.assert_close(result.confidence[0].double(), table.softmax(-1).amax(-1))


def test_random_order_differs_by_row_and_seed_and_is_otherwise_fixed(rows):
    batch = rows([8, 8])
    one, again, other = (generate(model(), batch, Decoding("random"), seed=seed).step for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8])
def test_all_positions_above_the_threshold_are_revealed_at_once(rows, threshold):
    denoiser, batch = model(seed=2), rows([8])
    table = denoiser.backbone.table[:L].clone()
    table[:, MASK] = -torch.inf
    sure = table.softmax(-1).amax(-1) > threshold
    assert 1 < int(sure.sum()) < 7
    result = generate(denoiser, batch, Decoding(threshold=threshold))
    assert torch.equal(result.step[0] == 0, sure)
    assert result.step[0][~sure].sort().values.tolist() == list(range(1, 1 + int((~sure).sum())))


def test_decoding_conditions_on_what_is_already_revealed(rows):
    """Left to right, each position's logits depend on the token put to its left: follow it by hand."""
    denoiser, batch = model(seed=3, context=3.0), rows([8])
    result = generate(denoiser, batch, Decoding("left_to_right"))
    backbone, expected = denoiser.backbone, []
    for position in range(L):
        logits = backbone.table[position] + (backbone.pull[expected[-1]] if expected else 0)
        logits[MASK] = -torch.inf
        expected.append(int(logits.argmax()))
    assert result.tokens[0].tolist() == expected
    assert generate(denoiser, batch, Decoding("right_to_left")).tokens[0].tolist() != expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_follow_the_tempered_softmax(token_batch, temperature):
    count = 3000
    denoiser = model(seed=4, sharpness=1.0)
    batch = token_batch(torch.zeros(count, 2, dtype=torch.int64))
    result = generate(denoiser, batch, Decoding(tokens_per_step=2, temperature=temperature))
    table = denoiser.backbone.table[:2].clone()
    table[:, MASK] = -torch.inf
    p = (table / temperature).softmax(-1)
    for position in range(2):
        found = torch.bincount(result.tokens[:, position], minlength=V).double()
        expected = count * p[position]
        assert found[MASK] == 0
        chi = ((found - expected) ** 2 / expected)[:MASK].sum()
        assert float(chi) < 5 + 5 * 10**0.5
    joint = torch.bincount(result.tokens[:, 0] * MASK + result.tokens[:, 1], minlength=36).double()
    expected = count * (p[0, :MASK, None] * p[1, :MASK]).flatten()  # drawn together: independent
    assert float(((joint - expected) ** 2 / expected).sum()) < 35 + 5 * 70**0.5


def test_in_random_order_the_step_of_a_position_tells_nothing_about_its_token(token_batch):
    denoiser = model(seed=4, sharpness=1.0)
    result = generate(
        denoiser, token_batch(torch.zeros(3000, 3, dtype=torch.int64)), Decoding("random", temperature=1.0)
    )
    table = denoiser.backbone.table[0].clone()
    table[MASK] = -torch.inf
    for step in range(3):
        tokens = result.tokens[:, 0][result.step[:, 0] == step]
        assert abs(len(tokens) - 1000) < 4 * (3000 * 2 / 9) ** 0.5
        expected = len(tokens) * table.softmax(-1)[:MASK]
        chi = ((torch.bincount(tokens, minlength=MASK) - expected) ** 2 / expected).sum()
        assert float(chi) < 5 + 5 * 10**0.5


def test_a_low_temperature_is_the_greedy_choice(rows):
    batch = rows([8, 6])
    cold, greedy = (generate(model(context=1.0), batch, Decoding(temperature=t)) for t in (1e-4, 0.0))
    assert torch.equal(cold.tokens, greedy.tokens)


@given(
    lengths=st.lists(st.integers(0, L), min_size=2, max_size=6),
    policy=st.sampled_from(["confidence", "random"]),
    extra=st.integers(0, 5),
    threshold=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_row_is_decoded_alike_in_any_company_and_with_any_padding(rows, lengths, policy, extra, threshold, seed):
    batch, denoiser = rows(lengths, seed), model(seed=seed, context=1.0)
    decoding = Decoding(policy, threshold=threshold, temperature=1.0)
    whole = generate(denoiser, batch, decoding, seed=seed)
    for row in range(len(lengths)):
        alone = generate(denoiser, batch[row : row + 1].padded(L + extra), decoding, seed=seed)
        assert torch.equal(alone.tokens[0, :L], whole.tokens[row])
        assert torch.equal(alone.step[0, :L], whole.step[row])
        assert (alone.step[0, L:] == -1).all()


def test_each_step_is_shown_as_it_is(rows):
    batch, shown = rows([3, 5]), []
    result = generate(model(), batch, on_step=lambda step, *state: shown.append((step, *(x.clone() for x in state))))
    assert [step for step, *_ in shown] == list(range(5))
    for step, tokens, masked in shown:
        assert torch.equal(masked, result.step > step)
        assert torch.equal(tokens, torch.where(masked, MASK, result.tokens))


def test_the_model_is_evaluated_without_dropout_and_left_in_its_mode(rows):
    for training in (True, False):
        denoiser = model().train(training)
        seen = []
        generate(denoiser, rows([2]), on_step=lambda *_: seen.append(denoiser.training))  # noqa: B023
        assert seen == [False, False]
        assert denoiser.training is training


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(policy="random", temperature=1.0)])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"end_token_id": V}, f"end_token_id {V} is no token"),
        ({"end_token_id": MASK}, f"end_token_id {MASK} is no token"),
        ({"suppress_tokens": [0, -1]}, "suppress_tokens holds -1"),
        ({"suppress_tokens": [V]}, f"suppress_tokens holds {V}"),
        ({"suppress_tokens": list(range(MASK))}, "leaves no token"),
    ],
)
def test_an_end_and_suppressed_tokens_must_be_tokens_and_leave_some(rows, decoding, options, told):
    with pytest.raises(ValueError, match=told):
        generate(model(), rows([3]), decoding, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", ["random", "left_to_right", "confidence"])
def test_no_token_is_drawn_from_scores_that_are_not_finite(rows, policy, temperature):
    """In an order that asks for no scores too, where nothing else would notice."""
    denoiser = model()
    denoiser.backbone.table[L - 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite for rows among \[0, 1\]"):
        generate(denoiser, rows([L, L]), Decoding(policy, temperature=temperature))

"""Objectives that weigh tokens anew: where training comes to rest, and the one pass that serves scores and loss."""

from dataclasses import replace

import pytest
import torch

from unmask import (
    CAP,
    CART,
    ELBO,
    LIFT,
    PAPL,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
    Scores,
    SyRM,
)
from unmask.testing import TabularWorld, expectation, stationary, tabular_model

WORLD = TabularWorld.random(length=3, vocab_size=2)
STAYS = [
    PAPL(of="top"),
    PAPL(RowMean(), alpha=3.0, temperature=0.5, of="top"),
    LIFT(of="top"),
    CART(),
    CART(RowMean(), 0.6),
]
MOVES = [PAPL(), PAPL(alpha=3.0), LIFT(), LIFT(RowMean(), 1.0)]
ALL = [*STAYS, *MOVES, CAP(), SyRM()]


@pytest.mark.parametrize("objective", STAYS, ids=repr)
def test_factors_of_what_is_visible_leave_the_minimiser_where_it_is(objective):
    assert stationary(IndependentMasking(), objective, WORLD).moved < 1e-9


@pytest.mark.parametrize("objective", MOVES, ids=repr)
def test_factors_of_the_hidden_token_move_it(objective):
    assert stationary(IndependentMasking(), objective, WORLD).moved > 0.02


def test_likely_tokens_grow_likelier_under_papl():
    found = stationary(IndependentMasking(), PAPL(), WORLD)
    assert float(found.predicted.amax(1).mean()) > float(found.truth.amax(1).mean()) + 0.005


def test_syrm_biases_the_prompt_and_not_the_response():
    """Position 0 is a prompt that is masked only where it holds the syntax token 1."""

    def rows(strings):
        syntax = strings[:, 0] == 1
        maskable = torch.ones_like(strings, dtype=torch.bool)
        maskable[:, 0] = syntax
        guide = torch.zeros(strings.shape, dtype=torch.float64)
        guide[:, 0] = syntax
        return replace(WORLD.rows(strings, maskable), guide=guide)

    found = stationary(IndependentMasking(), SyRM(alpha=0.7), WORLD, rows)
    prompt = found.position == 0
    assert torch.allclose(found.predicted[prompt, 1], torch.ones(int(prompt.sum()), dtype=torch.float64))
    hidden = found.context[:, 0] == WORLD.mask_token_id
    given = ~hidden & ~prompt
    assert torch.allclose(found.predicted[given], found.truth[given], atol=1e-9)
    # A response under a hidden prompt is that of prompts with syntax there: moved, as SyRM's authors say.
    assert found.moved > 0.1


@pytest.mark.parametrize("alpha", [0.2, 0.9, 1.0])
def test_syrm_shares_the_base_s_weights_between_response_and_syntax(masked_batch, alpha):
    """L = alpha · response + (1 - alpha) · syntax (arXiv 2511.18159): the two factors of a token sum to one."""
    batch = masked_batch([[0, 1, 1, 0]], [[True, True, True, False]])
    guide = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    batch, other = (replace(batch, clean=replace(batch.clean, guide=g)) for g in (guide, 1 - guide))
    base = MaskedMean().weights(batch)
    objective = SyRM(MaskedMean(), alpha)
    assert objective.weights(batch)[0, 1].item() == pytest.approx(alpha * base[0, 1].item())
    torch.testing.assert_close(objective.weights(batch) + objective.weights(other), base)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_none_claims_to_be_the_elbo(objective):
    world = TabularWorld.random(length=2, vocab_size=2, error=1.0)
    clean = replace(world.rows(torch.tensor([[0, 1]])), guide=torch.zeros(1, 2, dtype=torch.float64))
    found = expectation(IndependentMasking(mask=ExactCount()), replace(objective, base=ELBO()), clean, world.nll)
    assert not found.claims_unbiased


def test_what_the_base_refuses_is_refused():
    with pytest.raises(ValueError, match="cannot state the density"):
        PAPL(ELBO()).check(ProgressiveUnmasking())


@pytest.fixture(scope="module")
def drawn():
    strings, _ = WORLD.strings()
    batch = IndependentMasking().assemble(
        WORLD.rows(strings),
        torch.linspace(0.2, 1, 8).double(),
        IndependentMasking().time,
        torch.rand(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        None,
    )
    return replace(batch, clean=replace(batch.clean, guide=torch.zeros(8, 3, dtype=torch.float64)))


@pytest.mark.parametrize("objective", [*STAYS, *MOVES, CAP(strength=0.7)], ids=repr)
def test_loss_and_gradient_are_those_of_the_formula_with_detached_factors(drawn, objective):
    model = tabular_model(WORLD)
    weights = objective.weights(drawn) / objective.normaliser(drawn).float()
    output = model(drawn, weights, objective=objective)
    output.loss.backward()

    hidden = model.hidden(drawn.noisy(model.mask_token_id), drawn.clean.attention)
    weight = model.head.output.weight.detach().clone().requires_grad_(True)
    logits = (hidden @ weight.T)[..., :-1]  # without the mask token
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, drawn.clean.tokens[..., None])[..., 0]
    scores = model(drawn, weights, needs=()).scores
    total = nll
    if (share := objective.sharpness(drawn, scores)) is not None:
        total = total - share * (log_p.exp() * log_p).sum(-1)
    factor = objective.reweight(drawn, scores) if objective.reads is not None else 1.0
    loss = (total * weights * factor * drawn.masked).sum()
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.allclose(model.head.output.weight.grad, weight.grad, atol=1e-9)
    if objective.reads is not None:
        assert torch.allclose(output.factor * drawn.masked, (factor * drawn.masked).to(output.factor))


@pytest.mark.parametrize("objective", [PAPL(), LIFT(), CAP(), CART()], ids=repr)
def test_factors_do_not_depend_on_the_split_into_micro_batches(drawn, objective):
    model = tabular_model(WORLD)
    weights = objective.weights(drawn) / objective.normaliser(drawn).float()
    whole = model(drawn, weights, objective=objective).loss
    parts = [model(drawn[rows], weights[rows], objective=objective).loss for rows in (slice(0, 3), slice(3, 8))]
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-9)


def test_papl_and_lift_by_hand(masked_batch):
    batch = masked_batch([[0, 1, 1, 0]], [[True, True, True, False]])
    p = torch.tensor([[0.5, 0.25, 0.25, 0.9]], dtype=torch.float64)
    scores = Scores(torch.zeros(1, 4), nll=-p.log())
    assert PAPL().reweight(batch, scores)[0, :3].tolist() == pytest.approx([1.5, 1.25, 1.25])
    for temperature in (1e-3, 1e-40, 1e-300):  # in the limit the likeliest has it all
        factors = PAPL(temperature=temperature).reweight(batch, Scores(torch.zeros(1, 4), nll=-p.log().float()))
        assert factors[0, :3].tolist() == [2, 1, 1]
    easy, *_, last = LIFT(strength=1.0).reweight(batch, scores)[0].tolist()
    assert easy == pytest.approx(1.5)  # rate 3/4, the easiest of three
    assert last == 1.0
    assert float(LIFT(strength=1.0).reweight(batch, scores)[0, :3].mean()) == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_lift_s_factors_rise_evenly_from_the_hardest_to_the_easiest(masked_batch, count):
    """Or fall, where less than half of the row is masked; the only masked token has the factor one."""
    batch = masked_batch([[0] * 7], [[i < count for i in range(7)]])
    scores = Scores(torch.zeros(1, 7), nll=torch.arange(7.0, 0.0, -1.0)[None])
    edge = 2 * count / 7 - 1 if count > 1 else 0
    wanted = torch.linspace(1 - edge, 1 + edge, count)
    torch.testing.assert_close(LIFT(strength=1.0).reweight(batch, scores)[0, :count], wanted)


def test_cart_by_hand(masked_batch):
    batch = masked_batch([[0, 1, 1, 0]], [[False, True, True, False]])
    found = CART(MaskedMean(), p=0.5).weights(batch)[0].tolist()
    assert found == pytest.approx([0, 0.25 + 0.125, 0.25 + 0.125, 0])


def test_weights_are_not_rounded_by_a_loop_s_autocast(masked_batch):
    """`TrainingStep` is called inside of it, and the `Trainer` weighs outside."""
    batch = masked_batch([[0, 1, 1, 0, 1, 0]], [[False, True, True, False, True, False]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = CART().weights(batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, CART().weights(batch))


def cut_rows(masked_batch, seed):
    """Rows cut into uneven blocks, and the same blocks as rows of their own, with scores of both."""
    draw = torch.Generator().manual_seed(seed)
    block = (torch.rand(6, 9, generator=draw) < 0.35).long().cumsum(1)
    block -= block[:, :1]
    masked = torch.rand(6, 9, generator=draw) < 0.5
    batch = replace(masked_batch(torch.randint(0, 2, (6, 9), generator=draw).tolist(), masked.tolist()), block=block)
    log_p = [-torch.rand(6, 9, generator=draw) * 30 for _ in range(2)]
    yield batch, Scores(log_p[0], nll=-log_p[1]), None
    for row, number in {(r, int(b)) for r in range(6) for b in block[r]}:
        own = block[row] == number
        part = masked_batch([batch.clean.tokens[row, own].tolist()], [masked[row, own].tolist()])
        yield part, Scores(log_p[0][row, own][None], nll=-log_p[1][row, own][None]), (row, own)


@pytest.mark.parametrize("objective", [PAPL(), PAPL(of="top"), LIFT(), LIFT(of="top")], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_a_block_s_factors_are_those_of_a_row_of_its_own(masked_batch, objective, seed):
    (batch, scores, _), *parts = cut_rows(masked_batch, seed)
    found = objective.reweight(batch, scores)
    for part, own_scores, place in parts:
        torch.testing.assert_close(found[place], objective.reweight(part, own_scores)[0].to(found))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("documents", [False, True])
def test_cart_counts_what_a_position_sees(masked_batch, seed, documents):
    (batch, *_), *_ = cut_rows(masked_batch, seed)
    document = torch.arange(9).expand(6, 9) // 4
    if documents:
        batch = replace(batch, clean=replace(batch.clean, document=document))
    found = CART(MaskedMean(), p=0.4).weights(batch)
    for row, i in batch.masked.nonzero().tolist():
        weight = 0.0
        for j in range(9):
            earlier = batch.block[row, j] < batch.block[row, i]
            visible = earlier or (batch.block[row, j] == batch.block[row, i] and not batch.masked[row, j])
            if visible and j != i and (not documents or document[row, j] == document[row, i]):
                weight += 0.4 * 0.6 ** (abs(i - j) - 1) / 2
        assert float(found[row, i]) == pytest.approx(weight)


def test_cap_moves_the_gradient_off_the_truth():
    """At the true conditionals the cross-entropy's expected gradient is zero, and with CAP it sharpens."""
    strings, probability = WORLD.strings()
    masked = torch.ones_like(strings, dtype=torch.bool)
    log_p = WORLD.log_probabilities(strings, masked).requires_grad_(True)
    nll = -log_p.log_softmax(-1).gather(-1, strings[..., None])[..., 0]
    plain = (probability[:, None] * nll).sum()
    right = log_p.argmax(-1) == strings
    entropy = -(log_p.log_softmax(-1).exp() * log_p.log_softmax(-1)).sum(-1)
    term = 0.1 * (probability[:, None] * right * entropy).sum()
    first, second = (torch.autograd.grad(part, log_p)[0].sum(0) for part in (plain, term))
    assert float(first.abs().max()) < 1e-12
    top = log_p[0].argmax(-1, keepdim=True)
    assert (second.gather(-1, top) < -1e-3).all()  # descent raises what is likeliest


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PAPL(alpha=-1.0),
        lambda: PAPL(temperature=0.0),
        lambda: PAPL(of="best"),
        lambda: LIFT(strength=1.5),
        lambda: LIFT(of="best"),
        lambda: CAP(strength=-0.1),
        lambda: CART(p=1.0),
        lambda: SyRM(alpha=0.0),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        wrong()

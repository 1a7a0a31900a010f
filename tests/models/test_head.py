import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmask import MaskedHead, Scores
from unmask.models import head
from unmask.models.head import masked_cross_entropy

D, V, MASK = 5, 11, 4
NEEDS = ("log_confidence", "margin", "entropy")


def problem(count, bias=True, seed=0, dtype=torch.float64):
    """Hidden states, weight, bias, targets and token weights, with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(0, V - 1, (count,), generator=generator)
    targets = targets + (targets >= MASK).long()  # never the mask token
    return leaf(count, D), leaf(V, D), leaf(V) if bias else None, targets, leaf(count).detach().abs()


def plain(hidden, weight, bias, targets, token_weights):
    """The same in one line each, by autograd on full logits."""
    logits = nn.functional.linear(hidden, weight, bias)
    logits = logits.masked_fill(torch.arange(len(weight)) == MASK, -torch.inf)
    nll = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (nll * token_weights).sum(), nll, logits


def gradients(loss, leaves):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


@pytest.mark.parametrize("chunk_elements", [1, 3 * V, 4 * V + 1, 1 << 23])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_loss_scores_and_gradients_are_those_of_the_plain_formula(monkeypatch, chunk_elements, bias, count):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk_elements)
    hidden, weight, offset, targets, token_weights = problem(count, bias)
    loss, nll, found = masked_cross_entropy(hidden, weight, offset, targets, token_weights, MASK, NEEDS)
    expected, expected_nll, logits = plain(hidden, weight, offset, targets, token_weights)
    p = logits.softmax(-1)
    ranked = p.sort(-1, descending=True).values
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(found["log_confidence"], ranked[:, 0].log())
    torch.testing.assert_close(found["margin"], ranked[:, 0] - ranked[:, 1])
    torch.testing.assert_close(found["entropy"], torch.special.entr(p).sum(-1))
    leaves = (hidden, weight, offset)
    for ours, theirs in zip(gradients(3.5 * loss, leaves), gradients(3.5 * expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@given(seed=st.integers(0, 999), needs=st.sets(st.sampled_from(NEEDS)))
@settings(max_examples=25, deadline=None)
def test_asking_for_scores_changes_neither_loss_nor_gradient(seed, needs):
    leaves = problem(6, seed=seed)
    loss, nll, found = masked_cross_entropy(*leaves, MASK, tuple(needs))
    alone, alone_nll, nothing = masked_cross_entropy(*leaves, MASK)
    assert nothing == {}
    assert set(found) == needs | {"log_confidence"}
    assert torch.equal(loss, alone)
    assert torch.equal(nll, alone_nll)
    for a, b in zip(gradients(loss, leaves[:3]), gradients(alone, leaves[:3]), strict=True):
        assert torch.equal(a, b)


def test_scores_of_the_head_are_those_of_plain_logits():
    leaves = problem(7)
    _, _, found = masked_cross_entropy(*leaves, MASK, NEEDS)
    scores = Scores.from_logits(plain(*leaves)[2].detach(), needs=NEEDS)
    unmasked_logits = nn.functional.linear(*leaves[:3]).detach()
    excluded = Scores.from_logits(unmasked_logits, mask_token_id=MASK, needs=NEEDS)
    for name in NEEDS:
        torch.testing.assert_close(getattr(scores, name), found[name])
        torch.testing.assert_close(getattr(excluded, name), found[name])


@pytest.mark.parametrize("unused", [None, torch.tensor([9]), torch.tensor([0, 7, 10])], ids=["all", "one", "three"])
def test_a_flat_prediction_chooses_evenly_among_what_can_be_predicted(unused):
    output = nn.Linear(D, V, bias=False)
    nn.init.zeros_(output.weight)
    flat = MaskedHead(output, unused=unused)
    _, nll, found = flat(torch.randn(3, D), torch.full((3,), 5), torch.ones(3), MASK, ("entropy",))
    assert nll.tolist() == pytest.approx([math.log(flat.choices)] * 3)
    assert found["entropy"].tolist() == pytest.approx([math.log(flat.choices)] * 3)


class _Logits(TorchDispatchMode):
    """Notes how many rows of logits are held at each time: the best of each row is sought once."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.max.dim and args[0].shape[1] == V:
            self.rows.append(len(args[0]))
        return out


@pytest.mark.parametrize(
    ("frozen", "gradients", "chunks"),
    [
        (None, True, [D // 2] * 4 + [1]),
        (0, True, [D // 2] * 4 + [1]),
        (1, True, [1] * 9),
        (None, False, [1] * 9),
    ],
)
def test_only_a_weight_that_is_trained_takes_more_memory_than_the_budget(monkeypatch, frozen, gradients, chunks):
    """Here one row fills the budget; half of the hidden size's rows share each addition to a weight's gradient."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", V)
    leaves = list(problem(9))
    if frozen is not None:
        leaves[frozen] = leaves[frozen].detach()
    with _Logits() as seen, torch.set_grad_enabled(gradients):
        masked_cross_entropy(*leaves, MASK)
    assert seen.rows == chunks
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 4 * V)
    with _Logits() as seen, torch.set_grad_enabled(gradients):
        masked_cross_entropy(*leaves, MASK)
    assert seen.rows == [4, 4, 1]


def test_a_weight_tied_to_the_embedding_gets_both_gradients():
    hidden, weight, bias, targets, token_weights = problem(6)
    ids = torch.tensor([0, 1, 2, 0, 5, 9])
    table, theirs = (nn.Parameter(weight.detach().clone()) for _ in range(2))
    masked_cross_entropy(table[ids] * hidden, table, bias, targets, token_weights, MASK)[0].backward()
    plain(theirs[ids] * hidden, theirs, bias, targets, token_weights)[0].backward()
    torch.testing.assert_close(table.grad, theirs.grad)


@pytest.mark.parametrize("frozen", range(3))
def test_a_frozen_part_gets_no_gradient_and_the_others_theirs(frozen):
    leaves = list(problem(6))
    leaves[frozen] = leaves[frozen].detach()
    masked_cross_entropy(*leaves, MASK)[0].backward()
    free = [leaf for i, leaf in enumerate(leaves[:3]) if i != frozen]
    expected = torch.autograd.grad(plain(*leaves)[0], free)
    assert leaves[frozen].grad is None
    for leaf, gradient in zip(free, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_a_zero_upstream_gradient_and_a_scaled_one_are_honoured():
    leaves = problem(4)
    for scale in (0.0, -2.0, 1e4):
        ours = gradients(masked_cross_entropy(*leaves, MASK)[0] * scale, leaves[:3])
        theirs = gradients(plain(*leaves)[0] * scale, leaves[:3])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_a_second_backward_says_what_to_do():
    loss, _, _ = masked_cross_entropy(*problem(3), MASK)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        loss.backward()


def test_nll_and_scores_carry_no_gradient_and_nothing_does_without_grad_mode():
    leaves = problem(3)
    loss, nll, found = masked_cross_entropy(*leaves, MASK, NEEDS)
    assert loss.requires_grad
    assert not nll.requires_grad
    assert not any(value.requires_grad for value in found.values())
    with torch.no_grad():
        silent, silent_nll, _ = masked_cross_entropy(*leaves, MASK)
    assert not silent.requires_grad
    assert torch.equal(silent_nll, nll)
    assert torch.equal(silent, loss.detach())


def test_the_mask_token_takes_no_probability_and_gets_no_gradient():
    hidden, weight, bias, targets, token_weights = problem(5)
    with torch.no_grad():
        bias[MASK] = 1e3  # it would win everywhere
    loss, nll, found = masked_cross_entropy(hidden, weight, bias, targets, token_weights, MASK, NEEDS)
    others = torch.arange(V) != MASK
    rest = nn.functional.linear(hidden, weight, bias)[:, others].log_softmax(-1).detach()
    torch.testing.assert_close(found["log_confidence"], rest.max(-1).values)
    torch.testing.assert_close(nll, -rest.gather(1, (targets - (targets > MASK).long())[:, None])[:, 0])
    _, d_weight, d_bias = gradients(loss, (hidden, weight, bias))
    assert d_weight[MASK].abs().sum() == 0
    assert d_bias[MASK] == 0
    layer = nn.Linear(D, V, dtype=torch.float64)
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    logits = MaskedHead(layer).logits(hidden, MASK)
    assert (logits[:, MASK] == -torch.inf).all()
    torch.testing.assert_close(logits.log_softmax(-1)[:, others].detach(), rest)


def test_with_two_tokens_besides_the_mask_the_margin_is_theirs_and_with_one_it_is_one():
    scores = Scores.from_logits(torch.tensor([[0.0, 9.0, math.log(3.0)]]), mask_token_id=1, needs=NEEDS)
    assert float(scores.margin) == pytest.approx(0.5)
    single = Scores.from_logits(torch.tensor([[0.0, 9.0]]), mask_token_id=1, needs=NEEDS)
    assert (float(single.margin), float(single.log_confidence), float(single.entropy)) == (1, 0, 0)


def test_nearly_certain_positions_still_have_an_order():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, V, generator=generator) / 10
    logits[:, 0] += 12 + 2 * torch.rand(2000, generator=generator)  # p of about 0.99998
    exact = Scores.from_logits(logits.double()).log_confidence
    found = Scores.from_logits(logits).log_confidence
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)
    assert len(found.unique()) > 1900


def test_scores_of_half_precision_logits_are_taken_in_single_precision():
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in NEEDS:
        value = getattr(Scores.from_logits(logits, needs=NEEDS), name)
        assert value.dtype == torch.float32
        assert torch.equal(value, getattr(Scores.from_logits(logits.float(), needs=NEEDS), name))


def test_a_shift_of_all_logits_changes_nothing_even_far_out():
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, far = (Scores.from_logits(logits + shift, needs=NEEDS) for shift in (0, 1e6))
    for name in NEEDS:
        torch.testing.assert_close(getattr(near, name), getattr(far, name), atol=1e-8, rtol=0)


def test_under_autocast_statistics_are_single_precision_and_rarely_tie():
    """Confidences of bf16 logits, taken in bf16, tie all the time, and ties would decide the order."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(32, 200, bias=False)
    hidden = torch.randn(2000, 32, generator=generator)
    targets = torch.randint(0, 199, (2000,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll, found = MaskedHead(layer)(hidden, targets, torch.full((2000,), 5e-4), 199, NEEDS)
        naive = layer(hidden).softmax(-1, dtype=torch.bfloat16).amax(-1)
        sampling = MaskedHead(layer).logits(hidden, 199)
    assert {loss.dtype, nll.dtype, sampling.dtype, *(value.dtype for value in found.values())} == {torch.float32}
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert len(naive.unique()) < 300
    assert len(found["log_confidence"].unique()) > 1900
    logits = hidden @ layer.weight.T
    logits[:, 199] = -torch.inf
    torch.testing.assert_close(nll, nn.functional.cross_entropy(logits, targets, reduction="none"), atol=0.05, rtol=0)
    torch.testing.assert_close(Scores.from_logits(sampling).log_confidence, found["log_confidence"])


def test_gradients_under_autocast_are_those_of_single_precision_up_to_its_rounding():
    hidden, weight, bias, targets, token_weights = problem(400, dtype=torch.float32)
    exact = gradients(plain(hidden, weight, bias, targets, token_weights)[0], (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = masked_cross_entropy(hidden, weight, bias, targets, token_weights, MASK)
    for ours, theirs in zip(gradients(loss, (hidden, weight, bias)), exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_losses_of_nearly_certain_tokens_keep_their_precision():
    """A difference of large single-precision numbers would round a loss of 1e-8 nats to zero or 1e-6."""
    hidden = torch.eye(4)[:1].repeat(3, 1).requires_grad_()
    weight = torch.zeros(4, 4)
    weight[0, 0] = 18.0
    targets, token_weights = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    _, nll, found = masked_cross_entropy(hidden, weight, None, targets, token_weights, 3, NEEDS)
    exact = torch.full((3,), math.log1p(2 * math.exp(-18)))
    torch.testing.assert_close(nll, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(-found["log_confidence"], exact, rtol=1e-5, atol=0)


def test_scores_leave_the_logits_as_they_were():
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    Scores.from_logits(logits, needs=NEEDS)
    assert torch.equal(logits, before)


def _error(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("z", [1, 65_536, 1_000_000])
@pytest.mark.parametrize("spread", [1, 1000])
def test_half_precision_gradients_do_not_depend_on_how_small_the_weights_are(dtype, z, spread):
    """Weights are 1 / (t Z): small, and rounded only after the loss scale, which the head's backward alone knows."""
    generator = torch.Generator().manual_seed(0)
    count, width, size = 300, 32, 200
    hidden = torch.randn(count, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(size, width, generator=generator) / 8).requires_grad_()
    bias = torch.zeros(size, requires_grad=True)
    targets = torch.randint(0, MASK, (count,), generator=generator)
    weights = spread ** torch.rand(count, generator=generator) / z
    scale = 65_536.0
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    expected = gradients(plain(*exact, targets, weights.double())[0], exact)
    with torch.autocast("cpu", dtype):
        loss, _, found = masked_cross_entropy(hidden, weight, bias, targets, weights, MASK, ("gradient",))
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for ours, theirs in zip(gradients(loss * min(scale, z), (hidden, weight, bias)), expected, strict=True):
        assert _error(ours.double() / min(scale, z), theirs) < tolerance
    assert _error(found["gradient"], expected[0].norm(dim=-1)) < tolerance


def test_sums_over_many_rows_stay_in_the_range_of_half_precision(monkeypatch):
    """A weight's gradient adds up over thousands of rows, whatever the loss is divided by afterwards."""
    count, width, size = 20_000, 4, 6
    hidden = torch.full((count, width), 8.0, requires_grad=True)
    weight = torch.zeros(size, width, requires_grad=True)
    targets, weights = torch.zeros(count, dtype=torch.int64), torch.full((count,), 1 / count)
    with torch.autocast("cpu", torch.float16):
        loss, _, _ = masked_cross_entropy(hidden, weight, None, targets, weights, MASK)
    loss.backward()
    assert weight.grad.isfinite().all()
    torch.testing.assert_close(weight.grad[0], torch.full((width,), 8 * (0.2 - 1)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_a_half_precision_weight_is_summed_in_single_precision(monkeypatch, dtype):
    """Many chunks: each adds less than the rounding of what is there already."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1)
    count, width, size = 4000, 2, 3
    hidden = torch.ones(count, width, dtype=dtype)
    weight = torch.zeros(size, width, dtype=dtype, requires_grad=True)
    bias = torch.zeros(size, dtype=dtype, requires_grad=True)
    targets, weights = torch.zeros(count, dtype=torch.int64), torch.full((count,), 1 / count)
    loss, _, _ = masked_cross_entropy(hidden, weight, bias, targets, weights, 2)
    loss.backward()
    assert weight.grad.dtype == bias.grad.dtype == dtype
    torch.testing.assert_close(weight.grad[0].float(), torch.full((width,), -0.5), rtol=1e-2, atol=0)
    torch.testing.assert_close(bias.grad.float(), torch.tensor([-0.5, 0.5, 0]), rtol=1e-2, atol=0)

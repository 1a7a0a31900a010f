"""Settings of the loop: schedules, nucleus, temperature, remasking probabilities, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import Decoding
from unmask.sampling.decoding import draw_tokens, nucleus


def targets(decoding, size):
    """Revealed positions after each step, from none to all."""
    found = [0]
    while found[-1] < size:
        clock, revealed, length = (torch.tensor([n]) for n in (len(found) - 1, found[-1], size))
        found.append(int(decoding.target(clock, revealed, length)))
    return found


@given(size=st.integers(1, 300), steps=st.integers(1, 300), schedule=st.sampled_from(["linear", "cosine"]))
@settings(max_examples=60, deadline=None)
def test_a_schedule_reveals_everything_in_its_steps(size, steps, schedule):
    found = targets(Decoding(steps=steps, schedule=schedule), size)
    assert found[-1] == size
    assert all(a <= b for a, b in pairwise(found))
    assert len(found) - 1 <= steps
    for step, count in enumerate(found):
        share = step / steps if schedule == "linear" else 1 - math.cos(math.pi / 2 * step / steps)
        assert size * share - 1e-6 <= count < size * share + 1
    if schedule == "linear":
        counts = [b - a for a, b in pairwise(found)]
        assert max(counts) - min(counts) <= 1 or steps > size


@given(size=st.integers(1, 100), count=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_tokens_per_step_is_exact_until_the_last_step(size, count):
    assert targets(Decoding(tokens_per_step=count), size) == [*range(0, size, count), size]


def test_cosine_starts_slowly_and_linear_does_not():
    linear, cosine = (targets(Decoding(steps=10, schedule=name), 100) for name in ("linear", "cosine"))
    assert linear == list(range(0, 101, 10))
    assert cosine[1] == math.ceil(100 * (1 - math.cos(math.pi / 20)))
    assert cosine[5] == 30 < linear[5]


def test_remasking_probabilities_are_those_of_the_paper():
    """ReMDM: σ_max = min(1, (1 - α') / α) with the revealed shares α before and α' after the step."""
    revealed, target, size = (torch.tensor(x) for x in ([0, 2, 5, 9], [1, 3, 6, 10], [10, 10, 10, 10]))
    highest = [1.0, 1.0, 0.8, 0.0]
    for rule, expected in (("cap", [0.3, 0.3, 0.3, 0.0]), ("rescale", [0.3 * x for x in highest])):
        found = Decoding(remasking=0.3, remasking_rule=rule).remasking_probability(revealed, target, size)
        assert found.tolist() == pytest.approx(expected)
    found = Decoding(remasking=0.9).remasking_probability(revealed, target, size)
    assert found.tolist() == pytest.approx([0.9, 0.9, 0.8, 0.0])


weights = st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any)


@given(p=weights, top_p=st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_nucleus_is_the_smallest_set_with_the_mass(p, top_p):
    p = torch.tensor(p, dtype=torch.float64)
    p /= p.sum()
    kept = nucleus(p, top_p)
    inside = kept > 0
    assert torch.equal(kept[inside], p[inside])
    assert inside.any()
    assert float(kept.sum()) >= top_p - 1e-12
    assert float(kept.sum() - kept[inside].min()) < top_p + 1e-12
    if (~inside).any():
        assert float(kept[inside].min()) >= float(p[~inside].max())
    biggest = p.sort(descending=True).values.cumsum(0)
    assert int(inside.sum()) <= int((biggest < top_p + 1e-12).sum()) + 1


def test_equal_tokens_at_the_edge_of_the_nucleus_go_to_the_lower():
    assert nucleus(torch.tensor([0.25, 0.25, 0.25, 0.25]), 0.5).tolist() == [0.25, 0.25, 0, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_drawn_tokens_have_their_probabilities(temperature, top_p):
    logits = torch.tensor([1.0, -torch.inf, 0.3, -2.0, 1.5, -torch.inf])
    grid = 20_000
    u = (torch.arange(grid).double() + 0.5) / grid
    drawn = draw_tokens(logits.expand(grid, -1), u, temperature, top_p)
    expected = nucleus((logits.double() / temperature).softmax(-1), top_p)
    found = torch.bincount(drawn, minlength=6) / grid
    torch.testing.assert_close(found.double(), expected / expected.sum(), rtol=0, atol=2 / grid)


def test_temperature_limits_are_the_best_token_and_any_token():
    torch.manual_seed(0)
    logits = torch.randn(500, 9)
    logits[:, -1] = -torch.inf
    u = torch.rand(500, dtype=torch.float64)
    for cold in (1e-6, 1e-308, 5e-324):
        assert torch.equal(draw_tokens(logits, u, cold), logits.argmax(-1))
    assert torch.equal(draw_tokens(logits, u, 1e9), (u * 8).long())


def test_no_number_draws_a_token_without_probability():
    logits = torch.tensor([[-torch.inf, 0.1, 0.2, -torch.inf], [-torch.inf, 0.0, -torch.inf, -torch.inf]])
    for u in (2.0**-53, 1 - 2.0**-53):
        drawn = draw_tokens(logits, torch.full((2,), u, dtype=torch.float64), 0.7)
        assert (logits.gather(1, drawn[:, None]) > -torch.inf).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_step": 0}, "tokens_per_step must be an integer of at least 1"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"steps": 4, "tokens_per_step": 2}, "give steps or tokens_per_step, not both"),
        ({"schedule": "cosine"}, "schedule 'cosine' needs steps"),
        ({"threshold": 1.0}, r"threshold is a probability in \(0, 1\)"),
        ({"schedule": "cosin", "steps": 2}, "schedule must be 'linear' or 'cosine', got 'cosin'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is a probability"),
        ({"top_p": 0.9}, "top_p has no effect at temperature 0"),
        ({"block_size": 0}, "block_size must be an integer"),
        ({"causal_blocks": True}, "causal_blocks needs a block_size"),
        ({"remasking": 1.5}, "remasking is a probability"),
        ({"remasking_rule": "kap"}, "remasking_rule must be 'cap' or 'rescale'"),
        ({"policy": "surest"}, "unknown policy 'surest'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)

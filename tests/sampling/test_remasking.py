"""Tokens that are masked again: how often, on what schedule, and under which noise."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from unmask import Decoding, MaskedDiffusionLM, generate

V, MASK, L = 14, 13, 12


@pytest.mark.parametrize("rule", ["cap", "rescale"])
@pytest.mark.parametrize("steps", [6, 12, 40])
def test_remasking_keeps_to_the_schedule_and_is_as_frequent_as_it_says(model, token_batch, trajectory, rule, steps):
    rows, eta = 300, 0.25
    maskable = (torch.arange(L) >= 2).expand(rows, L)
    batch = token_batch(torch.zeros(rows, L, dtype=torch.int64), maskable)
    decoding = Decoding("random", steps=steps, remasking=eta, remasking_rule=rule)
    _, masks = trajectory(model, batch, decoding)
    size = L - 2
    assert len(masks) - 1 == next(step for step in range(steps + 1) if -(-size * step // steps) == size)
    for step, (before, after) in enumerate(pairwise(masks)):
        target = -(-size * (step + 1) // steps)
        assert (size - after.sum(1) == target).all()
        revealed = size - int(before[0].sum())
        again = (after & ~before)[:, 2:].sum(1).double()
        assert (again <= size - target).all()
        highest = min(1.0, (size - target) / max(1, revealed))
        expected = revealed * (min(eta, highest) if rule == "cap" else eta * highest)
        if size - target >= revealed:  # where the count is a free binomial
            error = (revealed * eta * (1 - eta) / rows) ** 0.5
            assert abs(float(again.mean()) - expected) <= 4.5 * error
        else:
            assert float(again.mean()) <= expected + 4.5 * (expected / rows) ** 0.5


def test_a_token_masked_again_is_not_revealed_in_the_same_step(model, ragged):
    """And what the forward saw includes it: the step goes from z_t to z_s."""
    batch, seen = ragged([12, 12, 12]), []
    predict = model.predict
    masks, tokens = [batch.maskable.clone()], []

    def record(step, now, masked):
        masks.append(masked.clone())
        tokens.append(now.clone())

    class Spy:
        """The model, whose inputs are kept."""

        def __getattr__(self, name):
            return getattr(model, name)

        def predict(self, noisy, *rest):
            seen.append(noisy.clone())
            return predict(noisy, *rest)

    generate(Spy(), batch, Decoding("random", steps=8, remasking=0.9), on_step=record)
    happened = 0
    for step in range(1, len(seen)):
        if len(seen[step]) == 3:
            assert torch.equal(seen[step], tokens[step - 1])
        happened += int((masks[step + 1] & ~masks[step]).sum())
    assert happened > 5


@pytest.mark.parametrize("rule", ["cap", "rescale"])
def test_a_probability_of_nearly_zero_is_plain_decoding(model, ragged, trajectory, rule):
    """The way through remasking, which plain decoding does not take, ends in the same tokens."""
    batch, options = ragged([12, 8, 10]), {"policy": "random", "steps": 5, "temperature": 1.0}
    plain = trajectory(model, batch, Decoding(**options))
    nearly = trajectory(model, batch, Decoding(**options, remasking=1e-12, remasking_rule=rule))
    assert torch.equal(plain[0].tokens, nearly[0].tokens)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], nearly[1], strict=True))
    assert all((after & ~before).sum() == 0 for before, after in pairwise(plain[1]))
    assert plain[0].forwards == nearly[0].forwards == sum(int(m.any(1).sum()) for m in plain[1][:-1])


class _Knows(nn.Module):
    """A backbone to which all tokens are alike."""

    def forward(self, input_ids, attention_mask=None):
        return BaseModelOutput(last_hidden_state=torch.zeros(*input_ids.shape, V))


def test_what_is_masked_again_meets_new_noise(token_batch):
    """Its token, the step that reveals it and whether it is masked once more do not follow from the first time."""
    rows = 300
    model = MaskedDiffusionLM(_Knows(), nn.Linear(V, V, bias=False), MASK)
    batch = token_batch(torch.zeros(rows, L, dtype=torch.int64))
    states = [(torch.full((rows, L), MASK), torch.ones(rows, L, dtype=torch.bool))]
    decoding = Decoding("random", steps=30, remasking=0.2, temperature=1.0)
    generate(model, batch, decoding, on_step=lambda _, *state: states.append(tuple(x.clone() for x in state)))

    def excess(chosen, marked, among):
        """By how many of the marked more than by chance what is chosen among some exceeds, in each row."""
        chance = chosen.sum(1) * (marked & among).sum(1) / among.sum(1).clamp(min=1)
        return ((chosen & marked).sum(1) - chance)[(marked & among).any(1) & chosen.any(1)]

    had, just, ever = states[0][0], torch.zeros(rows, L, dtype=torch.bool), torch.zeros(rows, L, dtype=torch.bool)
    same, soon, twice = [], [], []
    for (tokens, before), (now, after) in pairwise(states):
        revealed, hit = before & ~after, ~before & after
        same.append((now == had)[revealed & ever].double())
        soon.append(excess(revealed, just, before))
        twice.append(excess(hit, ever, ~before))
        had, just, ever = torch.where(hit, tokens, had), hit, ever | hit
    alike = torch.cat(same)
    assert len(alike) > 500
    assert abs(float(alike.mean()) - 1 / (V - 1)) < 5 * (1 / (V - 1) / len(alike)) ** 0.5
    for found in (torch.cat(soon), torch.cat(twice)):
        assert len(found) > 500
        assert abs(float(found.mean())) < 5 * float(found.std()) / len(found) ** 0.5

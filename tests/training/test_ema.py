"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unmask.training.ema import WeightAverage


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def _walk(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.999])
def test_average_equals_the_formula(decay):
    model = _model()
    average = WeightAverage(model, decay)
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(12):
        _walk(model)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * e + (1 - d) * p for e, p in zip(expected, model.parameters(), strict=True)]
    for found, wanted in zip(average.average, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_average_is_in_place_inside_the_block_alone():
    model = _model()
    average = WeightAverage(model, 0.9)
    _walk(model)
    average.update(0)
    own = [p.detach().clone() for p in model.parameters()]
    with average.applied():
        assert all(torch.equal(p, a) for p, a in zip(model.parameters(), average.average, strict=True))
        assert not torch.equal(model.weight, own[0])
    assert all(torch.equal(p, o) for p, o in zip(model.parameters(), own, strict=True))


def test_weights_come_back_when_the_block_fails():
    model = _model()
    average = WeightAverage(model, 0.9)
    _walk(model)
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert torch.equal(model.weight, own)


def test_average_does_not_share_memory_with_the_weights():
    model = _model()
    average = WeightAverage(model, 0.9)
    kept = [a.clone() for a in average.average]
    _walk(model)
    assert all(torch.equal(a, k) for a, k in zip(average.average, kept, strict=True))


def test_average_of_bf16_weights_is_kept_in_fp32():
    model = _model().to(torch.bfloat16)
    average = WeightAverage(model, 0.999)
    for step in range(3):
        _walk(model)
        average.update(step)
    assert all(a.dtype == torch.float32 for a in average.average)
    assert any(not torch.equal(a, a.to(torch.bfloat16).float()) for a in average.average)


def test_frozen_weights_are_left_out():
    model = _model()
    model.bias.requires_grad_(False)
    assert len(WeightAverage(model, 0.9).average) == 1


def test_load_restores_by_name():
    model, other = _model(), _model()
    _walk(other)
    average = WeightAverage(model, 0.9)
    average.load(dict(reversed(other.state_dict().items())), model)
    assert all(torch.equal(a, p) for a, p in zip(average.average, other.parameters(), strict=True))

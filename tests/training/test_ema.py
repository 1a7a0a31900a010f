"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


def test_torchs_own_average_stands_still_in_bf16_and_copies_what_is_not_trained():
    """Why it is not used, docs/decisions/0018 (under FSDP2 it cannot even be made); once this fails, look again."""
    decay, weight = 0.999, 1.0
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(64, 64)).bfloat16()
    model[1].requires_grad_(False)
    nn.init.constant_(model[0].weight, weight)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(model)  # the first update copies
    ours = WeightAverage(model, decay)
    nn.init.constant_(model[0].weight, 1.25 * weight)
    for step in range(10_000, 10_200):
        theirs.update_parameters(model)
        ours.update(step)
    exact = 1.25 - 0.25 * decay**200
    assert float(ours.average[0]) == pytest.approx(exact, rel=1e-4)
    assert float(theirs.module[0].weight) == weight
    assert sum(p.numel() for p in theirs.parameters()) > 64**2 > sum(a.numel() for a in ours.average)

"""Where the loss is: against known entropies, and against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from unmask import IndependentMasking, MaskedBatch, MaskedDiffusionLM
from unmask.evaluation.curve import share_within
from unmask.evaluation.likelihood import LikelihoodConfig
from unmask.evaluation.locality import LocalityConfig, beyond, locality, nearest_visible
from unmask.testing import TabularWorld, tabular_model


def sampled(world, count=400) -> Dataset:
    strings, probability = world.strings()
    generator = torch.Generator().manual_seed(0)
    tokens = strings[torch.multinomial(probability, count, replacement=True, generator=generator)]
    return Dataset.from_dict({"tokens": tokens.tolist(), "maskable": [[True] * world.length] * count})


def config_of(world, **options) -> LocalityConfig:
    return LocalityConfig(likelihood=LikelihoodConfig(samples=4), bins=world.length, nearest=2, **options)


def entropy_by_count(world) -> list[float]:
    """Exact entropy in nats per masked token where n tokens are masked, n = 1..L, over masks and strings."""
    strings, probability = world.strings()
    rows, found = world.rows(strings), []
    for n in range(1, world.length + 1):
        total = 0.0
        masks = list(itertools.combinations(range(world.length), n))
        for places in masks:
            masked = torch.zeros(strings.shape, dtype=torch.bool)
            masked[:, list(places)] = True
            total += float((probability * world.nll(rows, masked).sum(1)).sum())
        found.append(total / n / len(masks))
    return found


def test_split_by_rate_is_entropy_and_learnable_error():
    world = TabularWorld.random(3, 2)
    wrong = TabularWorld(world.joint, error=1.5)
    curve = locality(tabular_model(wrong), sampled(world), config_of(world), reference=tabular_model(world))[0]
    for point, entropy, loss in zip(curve.points, entropy_by_count(world), entropy_of(wrong, world), strict=True):
        reach = 2.5 * (point.floor.high - point.floor.value)
        assert abs(point.floor.value - entropy) < reach
        assert abs(point.loss.value - loss) < 2.5 * (point.loss.high - point.loss.value)
        assert abs(point.learnable.value - (loss - entropy)) < 2.5 * (point.learnable.high - point.learnable.value)
        assert abs(point.loss.value - point.floor.value - point.learnable.value) < 1e-12


def entropy_of(wrong, world) -> list[float]:
    """Cross-entropy of the wrong denoiser by number of masked tokens, over the true strings."""
    mixed = TabularWorld(world.joint, wrong.error, wrong.seed)
    return entropy_by_count(mixed)


def test_a_model_that_knows_the_truth_has_nothing_left_to_learn():
    world = TabularWorld.random(3, 2)
    for curve in locality(tabular_model(world), sampled(world, 40), config_of(world), reference=tabular_model(world)):
        assert all(abs(point.learnable.value) < 1e-12 for point in curve.points)
        assert all(point.learnable.high - point.learnable.low < 1e-12 for point in curve.points)  # paired by row


def test_a_masked_share_falls_into_the_bin_that_holds_it():
    """Three strata of three tokens mask one, two and three of them: one third lies below a half, the others above."""
    world = TabularWorld.random(3, 2)
    config = LocalityConfig(LikelihoodConfig(samples=3), bins=2, nearest=2)
    curve = locality(tabular_model(world), sampled(world, 20), config)[0]
    assert [(point.label, point.tokens) for point in curve.points] == [("0–0.5", 20), ("0.5–1", 100)]


def test_radius_finds_how_far_information_lies():
    """x1 = x3, x2 a coin: within radius 1 nothing is known, within radius 2 everything; x2 is never known."""
    joint = torch.full((2, 2, 2), 1e-9, dtype=torch.float64)
    for a, b in itertools.product(range(2), repeat=2):
        joint[a, b, a] = 1
    world = TabularWorld(joint)
    curve = locality(tabular_model(world), sampled(world), config_of(world, radii=(0, 1, 2)))[2]
    loss = {point.label: point.loss.value for point in curve.points}
    ln2 = 0.6931
    assert abs(loss["0"] - ln2) < 1e-3
    assert abs(loss["1"] - ln2) < 1e-3
    assert loss["2"] == pytest.approx(loss["all"], abs=1e-12)
    assert loss["2"] < 0.9 * ln2
    share = dict(share_within(curve))
    assert share["1"] == pytest.approx(0, abs=1e-2)
    assert share["2"] == pytest.approx(1)


def test_known_number_is_the_floor_of_rate_and_distance_but_not_of_a_hidden_context():
    world = TabularWorld.random(3, 2)
    by_rate, by_distance, by_radius = locality(
        tabular_model(world), sampled(world, 20), config_of(world), reference=0.0
    )
    for point in (*by_rate.points, *by_distance.points):
        assert point.floor.value == 0
        assert point.learnable == point.loss
    assert all(point.floor is None for point in by_radius.points)


def test_batch_size_changes_no_number():
    world = TabularWorld.random(3, 2, error=1.0)
    model, rows = tabular_model(world), sampled(world, 23)
    wide, narrow = (locality(model, rows, config_of(world), batch_size=b) for b in (64, 5))
    for a, b in zip(wide, narrow, strict=True):
        for p, q in zip(a.points, b.points, strict=True):
            assert (p.label, p.tokens, p.rows) == (q.label, q.tokens, q.rows)
            assert p.loss.value == pytest.approx(q.loss.value, abs=1e-12)
            assert p.loss.low == pytest.approx(q.loss.low, abs=1e-12)


def test_every_masked_token_is_counted_once_by_rate_and_by_distance():
    world = TabularWorld.random(4, 2)
    by_rate, by_distance, by_radius = locality(tabular_model(world), sampled(world, 30), config_of(world))
    assert sum(p.tokens for p in by_rate.points) == sum(p.tokens for p in by_distance.points)
    assert {p.tokens for p in by_radius.points} == {30 * 4}  # one target for each row and sample


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_nearest_visible_against_brute_force(row):
    masked = torch.tensor([[m for m, _ in row]])
    real = torch.tensor([[r for _, r in row]])
    visible = [i for i, (m, r) in enumerate(row) if r and not m]
    found = nearest_visible(masked & real, real)[0].tolist()
    visible = [i for i, (m, r) in enumerate(row) if r and not (m and r)]
    for i, distance in enumerate(found):
        if visible:
            assert distance == min(abs(i - j) for j in visible)
        else:
            assert distance > len(row)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**7 - 1), st.booleans())
def test_beyond_hides_exactly_what_is_further(place, radius, code, shifted):
    world = TabularWorld.random(2, 2)
    clean = world.rows(torch.zeros(1, 7, dtype=torch.int64))
    clean = replace(clean, attention=torch.tensor([[True] * 6 + [False]]))
    masked = torch.tensor([[(code >> i) & 1 == 1 for i in range(7)]]) & clean.attention
    target = torch.arange(7)[None] == place
    batch = MaskedBatch(clean, masked, None, None)
    found = beyond(target, radius, batch, shifted).masked[0].tolist()
    for i in range(7):
        hidden = abs(i - place) > radius and i < 6 and not (shifted and i == 0)
        assert found[i] == (bool(masked[0, i]) or hidden)


@pytest.mark.parametrize("shifted", [False, True])
def test_documents_that_are_kept_apart_are_each_by_themselves(shifted):
    """What another document shows is near to nothing, and a shifted model is left the first token of each."""
    lengths = (4, 1, 3)
    document = torch.arange(3).repeat_interleave(torch.tensor(lengths))[None]
    world = TabularWorld.random(2, 2)
    clean = replace(world.rows(torch.zeros(1, 8, dtype=torch.int64)), document=document)
    masked = torch.tensor([[False, True, True, True, False, True, True, True]])
    apart = nearest_visible(masked, clean.attention, document)
    parts = zip(masked.split(lengths, 1), clean.attention.split(lengths, 1), strict=True)
    alone = torch.cat([nearest_visible(*part) for part in parts], 1)
    assert torch.equal(apart.clamp(max=8), alone.clamp(max=8))
    assert apart[0, -1] > 8 > nearest_visible(masked, clean.attention)[0, -1]
    target = torch.arange(8)[None] == 6
    found = beyond(target, 0, MaskedBatch(clean, masked, None, None), shifted).masked[0]
    assert (~found).nonzero()[:, 0].tolist() == ([0, 4] if shifted else [])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MaskedDiffusionLM.from_config(LlamaConfig(vocab_size=9, **sizes), 8, shifted)
    flags, places = [[False, True, True] * 2] * 4, [[0] * 3 + [1] * 3] * 4
    rows = Dataset.from_dict({"tokens": [[1, 2, 3] * 2] * 4, "maskable": flags, "document": places})
    by_distance = locality(model, rows, LocalityConfig(radii=(0, 1)))[1]
    assert {point.label for point in by_distance.points} == {"1", "2"}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        LocalityConfig(radii=(4, 2))
    with pytest.raises(ValueError, match="bins"):
        LocalityConfig(bins=0)


def test_every_masked_position_is_as_often_the_target_of_the_radius():
    """Position 0 is certain, position 2 a coin, whatever is seen: a masked token costs half a coin on average."""
    joint = torch.full((2, 2, 2), 1e-9, dtype=torch.float64)
    for b, c in itertools.product(range(2), repeat=2):
        joint[0, b, c] = 1.0 if b == 0 else 1e-9
    world = TabularWorld(joint)
    config = replace(config_of(world, radii=(0,)), likelihood=LikelihoodConfig(IndependentMasking(), samples=8))
    point = locality(tabular_model(world), sampled(world), config)[2].points[-1]
    assert point.label == "all"
    # Every row's target is one of its n masked positions, of which the coin is one with probability n / 3.
    assert point.loss.low < math.log(2) / 3 < point.loss.high
    assert point.loss.high - point.loss.low < 0.05

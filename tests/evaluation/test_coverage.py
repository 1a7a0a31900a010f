"""Do the intervals of likelihoods cover? What covers too seldom is refused; what is accepted is measured."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from unmask import (
    ELBO,
    Bell,
    Bernoulli,
    Beta,
    Blockwise,
    Clipped,
    ExactCount,
    IndependentMasking,
    LikelihoodConfig,
    Uniform,
)
from unmask.evaluation.likelihood import LEAST_EFFECTIVE, RowNats, likelihood
from unmask.testing import TabularWorld, exact_elbo, tabular_model

REFUSED = [Bell(std=0.17), Bell(std=0.1), Bell(std=0.07), Bell(0.2), Beta(5, 5), Beta(2, 2), Beta(2, 1), Beta(1, 3)]
ACCEPTED = [Uniform(), Bell(), Bell(std=0.3), Beta(1.5, 1.5), Beta(1, 0.5), Clipped(1e-3, 1.0)]


@pytest.mark.parametrize("time", REFUSED, ids=repr)
def test_rates_with_heavy_tailed_weights_are_refused_with_the_bound(time):
    for masking in (IndependentMasking(time), Blockwise(IndependentMasking(time), 4)):
        with pytest.raises(ValueError, match=r"effective sample size [\d.e-]+, at least 0\.4 is needed.*Uniform\(\)"):
            LikelihoodConfig(masking)


@pytest.mark.parametrize("time", ACCEPTED, ids=repr)
def test_the_effective_sample_size_is_that_of_drawn_weights(time):
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(100_000, generator=generator, dtype=torch.float64)
    weight = 1 / time.density(time.quantile(u))
    found = float(weight.mean() ** 2 / weight.square().mean())
    assert time.effective_sample_size == pytest.approx(found, rel=0.1)
    assert found > LEAST_EFFECTIVE


def test_a_part_of_the_bound_is_labelled_as_such():
    masking = IndependentMasking(Clipped(0.4, 1.0))
    with pytest.raises(ValueError, match=r"say so: ELBO\(low=0.4\)"):
        LikelihoodConfig(masking)
    world = TabularWorld.random(length=3, vocab_size=2, error=1.0)
    rows = Dataset.from_dict({"tokens": [[0, 1, 1]] * 200, "maskable": [[True] * 3] * 200})
    found = likelihood(tabular_model(world), rows, LikelihoodConfig(masking, objective=ELBO(0.4)))
    assert found.of.startswith("negative ELBO without the slice (0, 0.4] of rates")
    kept = exact_elbo(world.rows(torch.tensor([[0, 1, 1]])), world.nll, rule=Bernoulli(), low=0.4)
    value = found.nats_per_token
    assert abs(value.value - float(kept) / 3) < value.high - value.low
    whole = likelihood(tabular_model(world), rows)
    with pytest.raises(ValueError, match="same number"):
        found.difference(whole)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=repr)
@pytest.mark.parametrize("time", ACCEPTED, ids=repr)
def test_accepted_intervals_cover(time, rule):
    """95% intervals over 1000 sets of 50 rows, 8 samples each, of the world's exact value.

    Rows and draws as `likelihood` has them, but all at once, with a table of the world's losses for a model.
    """
    world, generator = TabularWorld.random(length=3, vocab_size=2, error=1.0), torch.Generator().manual_seed(0)
    strings, probability = world.strings()
    objective = ELBO(time.support[0])
    exact = exact_elbo(world.rows(strings), world.nll, rule=rule, low=objective.low)
    sets, rows, samples = 1000, 50, 8
    LikelihoodConfig(IndependentMasking(time, rule), samples, objective=objective)
    string = torch.multinomial(probability, sets * rows, replacement=True, generator=generator)
    string = string.repeat_interleave(samples)
    t = time.quantile(torch.rand(len(string), generator=generator, dtype=torch.float64))
    field = torch.rand(len(string), 3, generator=generator, dtype=torch.float64)
    clean = world.rows(strings[string])
    batch = IndependentMasking(time, rule).assemble(clean, t, time, field, None)
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    table = torch.stack([world.nll(world.rows(row.expand(8, 3)), masks) for row in strings])
    nll = table[string, (batch.masked * torch.tensor([4, 2, 1])).sum(1)]
    nats = (objective.weights(batch).double() * nll).sum(1).view(-1, samples).mean(1)
    truth, length = float((probability * exact).sum()) / 3, torch.full((rows,), 3)
    parts = [RowNats("", found, length).nats_per_token for found in nats.split(rows)]
    covered = sum(part.low <= truth <= part.high for part in parts) / sets
    assert covered >= (0.9 if rule == ExactCount() else 0.86)

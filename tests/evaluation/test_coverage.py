"""Do the intervals of likelihoods cover? What covers too seldom is refused; what is accepted is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from unmask import (
    ELBO,
    GIFT,
    Bell,
    Bernoulli,
    Beta,
    Blockwise,
    Clipped,
    ExactCount,
    HalfLife,
    IndependentMasking,
    LikelihoodConfig,
    RowStream,
    Uniform,
)
from unmask.evaluation import likelihood as module
from unmask.evaluation.likelihood import LEAST_EFFECTIVE, RowNats, effective_sample_sizes, likelihood, losses
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


def _alike(length: int, count: int = 1, **columns) -> Dataset:
    return Dataset.from_dict({"tokens": [[0] * length] * count, "maskable": [[True] * length] * count, **columns})


def _exponents(half_life: float, length: int = 16) -> torch.Tensor:
    c = torch.exp2(torch.arange(length, dtype=torch.float64) / (half_life * length))
    return c / c.mean()


@pytest.mark.parametrize("half_life", [0.1, 0.25, 0.5, 0.6, 1.0, -0.25, -1.0])
def test_a_token_s_effective_sample_size_is_that_of_its_exponent(half_life):
    """E w² = ∫ r'² dt = c² / (2c - 1) under uniform rates, and infinite at c of 1/2 and below."""
    rows, c = RowStream(_alike(16)).take(1), _exponents(half_life)
    found = effective_sample_sizes(IndependentMasking(mask=HalfLife(half_life)), rows)[0]
    expected = (2 * c - 1) / c**2
    assert torch.allclose(found[c > 0.56], expected[c > 0.56], rtol=0.02)
    assert (found[c <= 0.5] < 0.12).all()


@pytest.mark.parametrize("time", ACCEPTED, ids=repr)
def test_a_token_s_effective_sample_size_holds_that_of_the_rates(time):
    """Equal exponents are Bernoulli masks; unequal ones against weights that are drawn."""
    rows = RowStream(_alike(4)).take(1)
    plain = effective_sample_sizes(IndependentMasking(time), rows)
    assert plain.tolist() == [[pytest.approx(time.effective_sample_size, rel=1e-2)] * 4]
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    many = rows[torch.zeros(len(u), dtype=torch.int64)]
    weight = 1 / HalfLife(3.0).rate_and_density(time.quantile(u), many, time)[1]
    drawn = weight.mean(0) ** 2 / weight.square().mean(0)
    found = effective_sample_sizes(IndependentMasking(time, HalfLife(3.0)), rows)[0]
    assert torch.allclose(found, drawn, rtol=0.03)


@pytest.mark.parametrize(("half_life", "accepted"), [(1.0, True), (-0.7, True), (0.5, False), (0.1, False)])
def test_rates_by_position_are_refused_where_a_token_s_weights_have_no_second_moment(
    monkeypatch, half_life, accepted
):
    """Before a forward is spent, though the row lies at the end; every row of the control has one rate."""
    rows = Dataset.from_dict(
        {"tokens": [[0] * 16] * 9, "maskable": [[i == 8 or j == 3 for j in range(16)] for i in range(9)]}
    )
    spent = []

    def forwards(model, batch, batch_size):
        spent.append(len(batch))
        return torch.zeros(batch.masked.shape, dtype=torch.float64)

    monkeypatch.setattr(module, "masked_nll", forwards)
    model = tabular_model(TabularWorld.random(length=2, vocab_size=2, error=1.0))
    inner = IndependentMasking(mask=HalfLife(half_life))
    for masking in (inner, Blockwise(inner, 16), replace(inner, coupling="stratified")):
        spent.clear()
        if accepted:
            list(losses(model, rows, LikelihoodConfig(masking)))
            assert sum(spent) == 9 * 8
            continue
        with pytest.raises(ValueError, match=r"row 8 .*effective sample size [\d.e-]+, at least 0\.4.*ExactCount"):
            list(losses(model, rows, LikelihoodConfig(masking), batch_size=8))
        assert not spent
        list(losses(model, rows.select(range(8)), LikelihoodConfig(masking)))


def test_rates_by_entropy_are_refused_by_the_rows_that_they_read():
    model = tabular_model(TabularWorld.random(length=4, vocab_size=2, error=1.0))
    config = LikelihoodConfig(IndependentMasking(mask=GIFT()))
    likelihood(model, _alike(4, 2, guide=[[1.0, 1.2, 0.8, 1.0]] * 2), config)
    with pytest.raises(ValueError, match=r"row 0 .*effective sample size"):
        likelihood(model, _alike(4, 2, guide=[[0.0, 1.2, 0.8, 1.0]] * 2), config)


@pytest.mark.parametrize(("half_life", "least", "most"), [(0.7, 0.9, 1.0), (0.25, 0.0, 0.85), (0.1, 0.0, 0.3)])
def test_intervals_of_rates_by_position_cover_where_they_are_accepted(half_life, least, most):
    """300 sets of 50 rows, 8 samples each, all losses 1; what is refused is the control."""
    sets, rows, samples, length = 300, 50, 8, 16
    generator = torch.Generator().manual_seed(0)
    clean = RowStream(_alike(length)).take(1)[torch.zeros(rows * samples, dtype=torch.int64)]
    covered = 0
    for _ in range(sets):
        t, field = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in (400, (400, length)))
        batch = IndependentMasking(mask=HalfLife(half_life)).assemble(clean, t, Uniform(), field, None)
        nats = ELBO().weights(batch).double().sum(1).view(rows, samples).mean(1)
        part = RowNats("", nats, torch.full((rows,), length)).nats_per_token
        covered += part.low <= 1 <= part.high
    assert least <= covered / sets <= most


def _rows_of_documents(length: int, share: float, generator: torch.Generator, rows: int = 256) -> torch.Tensor:
    """Values of rows, of variance 1: a share of it comes from documents of so many rows."""
    of_documents, own = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (rows, rows))
    shift = int(torch.randint(length, (1,), generator=generator))
    return share**0.5 * of_documents[(torch.arange(rows) + shift) // length] + (1 - share) ** 0.5 * own


@pytest.mark.parametrize(
    ("length", "share", "shuffled", "least", "most"),
    [
        (1, 0.0, False, 0.92, 0.98),
        (4, 0.3, False, 0.9, 0.98),
        (12, 0.3, False, 0.85, 0.98),
        (12, 0.3, True, 0.4, 0.7),
    ],
    ids=["independent", "short documents", "long documents", "control: long documents, rows shuffled"],
)
def test_intervals_cover_where_neighbours_are_of_one_document(length, share, shuffled, least, most):
    """Rows taken one by one, as shuffled ones are, promise too much (docs/decisions/0020-neighbours.md)."""
    sets, generator = 600, torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(sets):
        nats = _rows_of_documents(length, share, generator)
        if shuffled:
            nats = nats[torch.randperm(len(nats), generator=generator)]
        part = RowNats("", nats, torch.ones(len(nats), dtype=torch.int64)).nats_per_token
        covered += part.low <= 0 <= part.high
    assert least <= covered / sets <= most


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

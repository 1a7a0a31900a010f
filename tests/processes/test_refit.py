"""Moments of single rows' losses and gradients at each rate, against plain sums and exact enumeration."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist

from unmask import ELBO, PPOTS, Bernoulli, ExactCount, IndependentMasking, RowStream, Uniform
from unmask.data import load_sudoku
from unmask.fitted_times import Measurement, RateProfile
from unmask.processes import refit
from unmask.processes.refit import evaluation_field, loss_and_gradient, measure_profile, row_losses
from unmask.recipes import SudokuModel

RATES = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SudokuModel(layers=1, width=16, heads=2).build()


@pytest.fixture(scope="module")
def rows():
    return load_sudoku("train", limit=40)


def _variance(draws):
    """Of draws [masks, rows, P]: the mean variance within a row, and that of the rows' means less its mask noise."""
    within = draws.var(0).sum(1).mean()
    return within + draws.mean(0).var(0).sum() - within / len(draws)


# Three kinds of rows, each with two masks, and a loss or gradient of each: a joint whose moments are sums.
ROW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MASK = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.6, 0.4]], dtype=torch.float64)
DRAWN = torch.tensor([[[9.0, 1], [8, 3]], [[5, 2], [7, -1]], [[12, 0], [6, 5]]], dtype=torch.float64)


@pytest.mark.parametrize(("rows", "masks"), [(2, 2), (3, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("moment", ["loss", "gradient"])
def test_both_moments_are_unbiased_by_enumeration(monkeypatch, rows, masks, moment):
    """Over all draws of a few rows and of masks of each: rows that repeat over masks are no rows of their own."""
    monkeypatch.setattr(refit, "row_losses", lambda _, drawn: drawn[:, 0])
    monkeypatch.setattr(refit, "loss_and_gradient", lambda _, drawn, objective: (None, drawn[0]))
    values = DRAWN if moment == "gradient" else DRAWN[..., :1]
    joint = (ROW[:, None] * MASK)[..., None]
    mean = (joint * values).sum((0, 1))
    truth = float((joint * (values - mean) ** 2).sum())
    own = (MASK[..., None] * values).sum(1, keepdim=True)
    truth_within = float((joint * (values - own) ** 2).sum())
    total, pooled = torch.zeros(3, dtype=torch.float64), 0.0
    for kinds in product(range(3), repeat=rows):
        for chosen in product(range(2), repeat=rows * masks):
            kind = torch.tensor(kinds).repeat(masks)
            mask = torch.tensor(chosen)
            probability = ROW[list(kinds)].prod() * MASK[kind, mask].prod()
            draws = values[kind, mask]

            def measured(within, draws=draws):
                if moment == "loss":
                    return refit._moments(None, draws, 2, masks, within)
                return refit._gradient_moments(None, draws, masks, within)

            length, variance = measured(within=False)
            inside = measured(within=True)[1] if masks > 1 else truth_within
            total += probability * torch.tensor([length**2, variance, inside], dtype=torch.float64)
            pooled += float(probability * draws.var(0).sum())
    assert total.tolist() == pytest.approx([float(mean.square().sum()), truth, truth_within], rel=1e-9)
    assert (abs(pooled / truth - 1) > 0.01) == (masks > 1)  # the control: all draws taken for independent ones


def test_the_profile_measures_mean_and_variance_at_each_rate(model, rows):
    """An untrained model loses about log 9 a token at every rate, so g is nearly flat for exact counts."""
    wanted = Measurement(RATES, rows=8, masks=8)
    found = measure_profile(model, rows, ExactCount(), wanted)
    assert found.t.tolist() == pytest.approx(RATES)
    assert float(found.mean.max() / found.mean.min()) < 1.2
    bernoulli = measure_profile(model, rows, Bernoulli(), wanted)
    # The number of masked tokens varies under Bernoulli masks alone, most of all (relatively) at low rates.
    assert bernoulli.variance[0] > 3 * found.variance[0]
    assert bernoulli.variance[0] > 3 * bernoulli.variance[-1]


def test_ranks_that_share_the_weights_measure_every_rate_together(model, rows, forked_ranks, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.processes.refit.is_sharded", lambda model: True)
    alone, each = _forwards_on_ranks(model, rows, Measurement(RATES, rows=3, masks=2), forked_ranks, tmp_path)
    assert each == [alone, alone]


@pytest.mark.parametrize("moment", ["loss", "gradient"])
def test_ranks_share_out_the_rates_and_all_have_the_profile_of_one(model, rows, forked_ranks, tmp_path, moment):
    wanted = Measurement(RATES, rows=3, masks=2, moment=moment)
    alone, each = _forwards_on_ranks(model, rows, wanted, forked_ranks, tmp_path)
    assert all(0 < ran < alone for ran in each)
    assert sum(each) == alone


def _forwards_on_ranks(model, rows, wanted, forked_ranks, folder) -> tuple[int, list[int]]:
    """Forwards of a measurement by one process, and by each of two ranks, all of which must have its profile."""
    whole = measure_profile(model, rows, Bernoulli(), wanted, seed=4)
    alone = _forwards(model, lambda: measure_profile(model, rows, Bernoulli(), wanted, seed=4))

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        profiles: list[RateProfile] = []
        ran = _forwards(model, lambda: profiles.append(measure_profile(model, rows, Bernoulli(), wanted, 4, rank, 2)))
        assert all(torch.equal(value, getattr(whole, name)) for name, value in vars(profiles[0]).items())
        (folder / str(rank)).write_text(str(ran))
        dist.destroy_process_group()

    assert forked_ranks(work) == [0, 0]
    return alone, [int((folder / str(rank)).read_text()) for rank in range(2)]


def _forwards(model, measure):
    """How many forwards of the model a measurement takes."""
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    measure()
    handle.remove()
    return len(calls)


@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=str)
def test_gradient_moments_are_those_of_the_rows_gradients(model, rows, rule):
    """The gradients of all rows at once, held in memory, give mean and covariance by definition."""
    wanted = Measurement((0.02, 0.5), rows=3, masks=2, moment="gradient")
    found = measure_profile(model, rows, rule, wanted)
    clean = RowStream(rows).rows(torch.arange(3).repeat(2), torch.tensor([0, 0, 0, 1, 1, 1]))
    for i, t in enumerate(wanted.rates):
        t = torch.full((6,), t, dtype=torch.float64)
        batch = IndependentMasking(mask=rule).assemble(clean, t, Uniform(), evaluation_field(0, clean, i), None)
        weights = ELBO().weights(batch) / clean.effective_length[:, None]
        gradients = []
        for row in range(6):
            model.zero_grad()
            model(batch[row : row + 1], weights[row : row + 1]).loss.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
        gradients = torch.stack(gradients)
        variance, second = _variance(gradients.view(2, 3, -1)), (gradients**2).sum(1).mean()
        assert float(found.variance[i]) == pytest.approx(float(min(variance, second)), rel=1e-4)
        # sqrt(g² + v), all that a fit looks at, is the root of the plain second moment
        assert float(found.mean[i] ** 2 + found.variance[i]) == pytest.approx(float(second), rel=1e-4)
    model.zero_grad()


def test_the_variance_within_rows_is_the_mean_of_the_rows_own(model, rows):
    """By definition: the variance over the masks of each row, then the mean over rows; the mean is the same."""
    wanted = Measurement((0.3, 0.7), rows=3, masks=4, variance="within")
    found, total = (measure_profile(model, rows, Bernoulli(), w) for w in (wanted, replace(wanted, variance="total")))
    clean = RowStream(rows).rows(torch.arange(3).repeat(4), torch.arange(4).repeat_interleave(3))
    for i, t in enumerate(wanted.rates):
        t = torch.full((12,), t, dtype=torch.float64)
        field = evaluation_field(0, clean, i)
        batch = IndependentMasking().assemble(clean, t, Uniform(), field, None)
        losses = row_losses(model, batch)
        own = torch.stack([losses[clean.row == row].var() for row in range(3)])
        assert float(found.variance[i]) == pytest.approx(float(own.mean()), rel=1e-5)
        assert float(total.variance[i]) == pytest.approx(float(_variance(losses.view(4, 3, 1))), rel=1e-5)
    assert torch.equal(found.mean, total.mean)


def test_the_gradients_variance_within_rows_is_the_mean_of_the_rows_own(model, rows):
    wanted = Measurement((0.5,), rows=2, masks=3, moment="gradient", variance="within")
    found = measure_profile(model, rows, ExactCount(), wanted)
    clean = RowStream(rows).rows(torch.arange(2).repeat(3), torch.arange(3).repeat_interleave(2))
    t = torch.full((6,), 0.5, dtype=torch.float64)
    field = evaluation_field(0, clean, 0)
    batch = IndependentMasking(mask=ExactCount()).assemble(clean, t, Uniform(), field, None)
    gradients = torch.stack([loss_and_gradient(model, batch[i : i + 1], ELBO())[1].double() for i in range(6)])
    own = [gradients[row::2].var(0).sum() for row in range(2)]
    assert float(found.variance[0]) == pytest.approx(float(sum(own)) / 2, rel=1e-4)


def test_measuring_leaves_the_model_as_it_was(model, rows):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for moment in ("loss", "gradient"):
        measure_profile(model, rows, ExactCount(), Measurement(RATES, 2, 1, moment))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fitted_rates_lower_the_noise_of_the_gradient_they_were_fitted_to(model, rows):
    """∫ E|G|² / p is what independent rates add to the gradient's second moment; uniform is the control."""
    config = PPOTS(moment="gradient", grid=10, rows=4, masks=4)
    time = config.start()
    profile = measure_profile(model, rows, Bernoulli(), time.measures)
    time.refit(profile)
    second = profile.mean**2 + profile.variance
    assert float((second / time.density(profile.t - 1 / 20)).mean()) < 0.95 * float(second.mean())


def test_a_single_row_has_no_variance(model, rows):
    with pytest.raises(ValueError, match="at least 2 held-out rows"):
        measure_profile(model, rows.select([0]), ExactCount(), Measurement(RATES, 2, 1))


def test_a_batch_without_a_mask_has_a_zero_gradient(model, rows):
    masking, clean = IndependentMasking(), RowStream(rows).take(2)
    field = torch.ones(2, 81, dtype=torch.float64)
    t = torch.full((2,), 0.5, dtype=torch.float64)
    batch = masking.assemble(clean, t, Uniform(), field, None)
    loss, gradient = loss_and_gradient(model, batch, ELBO())
    assert float(loss) == 0
    assert gradient.shape == (sum(p.numel() for p in model.parameters()),)
    assert not gradient.any()

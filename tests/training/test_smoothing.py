"""The control variate of the logged loss: it calms the curve, keeps its mean and touches no gradient."""

import numpy as np
import pytest
import torch

from unmask import MaskedMean
from unmask.data import load_sudoku
from unmask.data.stream import RowStream
from unmask.processes import IndependentMasking
from unmask.recipes import SudokuModel
from unmask.training.diagnostics import BINS, by_rate
from unmask.training.smoothing import SmoothLoss


def drawn(generator, level=1.0, rows=16):
    """Rows by bin, and each bin's part of the mean of losses that grow with the rate, plus noise."""
    t = generator.random(rows)
    losses = level * (0.2 + 3 * t**2) + 0.1 * generator.standard_normal(rows)
    bins = np.minimum((t * BINS).astype(int), BINS - 1)
    return np.bincount(bins, minlength=BINS).tolist(), (np.bincount(bins, losses, BINS) / rows).tolist()


@pytest.mark.parametrize("fitted", [False, True])
def test_it_calms_the_curve_and_keeps_its_mean(fitted):
    generator, smooth = np.random.default_rng(0), SmoothLoss(fitted=fitted)
    steps = [drawn(generator) for _ in range(1500)]
    raw, calm = np.array([sum(part) for _, part in steps]), np.array([smooth.update(*step) for step in steps])
    assert calm[100:].std() < 0.5 * raw[100:].std()
    assert abs(calm[100:].mean() - raw[100:].mean()) < 0.05
    if fitted:
        assert smooth.coefficient == pytest.approx(1, abs=0.25)


def test_it_follows_a_loss_that_falls():
    generator, smooth = np.random.default_rng(0), SmoothLoss()
    levels = np.linspace(2, 1, 600)
    steps = [drawn(generator, level) for level in levels]
    calm = np.array([smooth.update(*step) for step in steps])
    assert np.abs(calm[50:] - 1.2 * levels[50:]).max() < 0.5  # 0.2 + 3 E t² = 1.2
    assert calm[:50].mean() > 1.5 * calm[-50:].mean()


def test_where_rates_explain_nothing_it_is_the_loss():
    smooth = SmoothLoss()
    for loss in (3.0, 1.0, 2.0):
        assert smooth.update([4] * BINS, [loss / BINS] * BINS) == pytest.approx(loss)
    assert SmoothLoss().update([0] * BINS, [0.0] * BINS) == 0


def test_a_baseline_of_numbers_changes_no_gradient():
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    batch = IndependentMasking().start(RowStream(load_sudoku("train", limit=8)), 4).draw()
    objective, smooth = MaskedMean(), SmoothLoss()
    weights = objective.weights(batch) / objective.normaliser(batch).float()

    def gradient(with_baseline):
        model.zero_grad()
        output = model(batch, weights, needs=("gradient",))
        loss = output.loss
        if with_baseline:
            sums = by_rate(batch, output.nll, weights, output.gradient)
            for _ in range(2):
                calm = smooth.update(sums[:, 0].int().tolist(), sums[:, 4].tolist())
            loss = loss - (loss.item() - calm + 0.7)
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradient(False), gradient(True), strict=True))


def test_the_parts_of_the_bins_add_up_to_the_loss():
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    batch = IndependentMasking().start(RowStream(load_sudoku("train", limit=8)), 8).draw()
    weights = MaskedMean().weights(batch) / MaskedMean().normaliser(batch).float()
    output = model(batch, weights, needs=("gradient",))
    assert float(by_rate(batch, output.nll, weights, output.gradient)[:, 4].sum()) == pytest.approx(
        output.loss.item(), rel=1e-5
    )

"""Rows drawn by importance: every expectation over rows stays what it is under uniform draws."""

import pytest
import torch

from unmask import ELBO, ExactCount, IndependentMasking, RowImportance, RowStream, Scores
from unmask.data.importance import RowScales


@pytest.fixture
def scales():
    found = RowScales(RowImportance(uniform=0.25, memory=0.5), 6)
    found.observe(torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 4.0, 0.5, 1.5]))
    return found


def weights_of_each(scales):
    """[N] the weight that each row gets where it is drawn."""
    q = scales.probability
    row, _, weights = scales.choose(q.cumsum(0) - q / 2)
    assert row.tolist() == list(range(len(q)))
    return weights


def test_weights_undo_the_uneven_draw_exactly(scales):
    q, values = scales.probability, torch.tensor([3.0, -1, 2, 5, 0, 7], dtype=torch.float64)
    weights = weights_of_each(scales)
    assert float((q * weights * values).sum()) == pytest.approx(float(values.mean()), abs=1e-12)
    assert float(q.sum()) == pytest.approx(1, abs=1e-12)
    # A negative control: without the weights the expectation is another one.
    assert abs(float((q * values).sum()) - float(values.mean())) > 0.05


def test_rows_with_larger_losses_are_drawn_more_often_and_in_proportion(scales):
    n = 60_000
    row, _, weight = scales.choose((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    share = torch.bincount(row, minlength=6).double() / n
    assert torch.allclose(share, scales.probability, atol=1e-3)
    assert share[1] > 2 * share[0]
    assert float(weight.max()) <= 1 / 0.25 + 1e-9


def test_unseen_rows_count_as_typical(scales):
    q = scales.probability
    assert torch.allclose(q[3:], q[3].expand(3))
    assert q[0] < q[3] < q[1]


def test_the_estimate_is_a_moving_average(scales):
    before = scales.scale[1].item()
    scales.observe(torch.tensor([1]), torch.tensor([10.0]))
    assert scales.scale[1].item() == pytest.approx(0.5 * before + 0.5 * 10)


def test_a_row_drawn_twice_gets_two_draw_numbers():
    scales = RowScales(RowImportance(), 3)
    row, draw, _ = scales.choose(torch.tensor([0.1, 0.15, 0.9, 0.12], dtype=torch.float64))
    assert row.tolist() == [0, 0, 2, 0]
    assert draw.tolist() == [0, 1, 0, 2]
    assert scales.choose(torch.tensor([0.1], dtype=torch.float64))[1].tolist() == [3]


def test_the_elbo_divides_by_the_data_sets_mean_length(dataset_of):
    lengths = [2, 4, 6, 12]
    rows = RowStream(dataset_of(lengths), importance=RowImportance())
    process = IndependentMasking(mask=ExactCount()).start(rows, 8)
    assert float(ELBO().normaliser(process.draw())) == pytest.approx(8 * sum(lengths) / 4)


def test_the_elbo_under_uneven_draws_is_the_data_sets(dataset_of):
    """Σ_i q_i w_i · ELBO_i / mean length: exact over the rows, with the production weights and Z."""
    lengths = [2, 4, 6, 12]
    rows = RowStream(dataset_of(lengths), importance=RowImportance(uniform=0.2))
    process = IndependentMasking(mask=ExactCount()).start(rows, 4)
    batch = process.draw()
    process.observe(Scores(torch.zeros(batch.masked.shape), nll=batch.masked * (1.0 + batch.clean.row[:, None])))
    q = rows._scales.probability
    each = torch.tensor([n * 0.7 + i for i, n in enumerate(lengths)], dtype=torch.float64)  # any row ELBOs
    weights = weights_of_each(rows._scales)
    z = float(ELBO().normaliser(process.draw())) / 4
    assert float((q * weights * each).sum()) / z == pytest.approx(float(each.sum() / sum(lengths)))


def test_it_resumes_with_the_same_rows(dataset_of):
    def run(process, steps):
        found = []
        for _ in range(steps):
            batch = process.draw()
            found += batch.clean.row.tolist() + batch.clean.draw.tolist() + batch.clean.weight.tolist()
            process.observe(
                Scores(torch.zeros(batch.masked.shape), nll=batch.masked * (1.0 + batch.clean.row[:, None]))
            )
        return found

    def start():
        rows = RowStream(dataset_of([3] * 20), seed=3, importance=RowImportance())
        return IndependentMasking().start(rows, 4, seed=3)

    whole = start()
    first = run(whole, 5)
    state = whole.state_dict()
    rest = run(whole, 5)
    again = start()
    again.load_state_dict(state)
    assert run(again, 5) == rest != first


def test_a_stream_of_the_other_kind_is_refused(dataset_of):
    even, uneven = RowStream(dataset_of([3] * 4)), RowStream(dataset_of([3] * 4), importance=RowImportance())
    with pytest.raises(ValueError, match="importance"):
        even.load_state_dict(uneven.state_dict())
    with pytest.raises(ValueError, match="importance"):
        uneven.load_state_dict(even.state_dict())


@pytest.mark.parametrize("settings", [{"uniform": 0.0}, {"uniform": 1.1}, {"memory": 1.0}, {"memory": -0.1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="share"):
        RowImportance(**settings)

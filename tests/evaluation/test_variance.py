"""The decomposition A + B + C: unbiased estimators on draws whose variances are known, and on a real model."""

import io
import json
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from unmask import (
    ELBO,
    PPOTS,
    Blockwise,
    Clipped,
    IndependentMasking,
    ProgressiveUnmasking,
    RowImportance,
    RowMean,
    RowStream,
)
from unmask.data import load_sudoku
from unmask.evaluation.decomposition import save_variance
from unmask.evaluation.variance import (
    Nested,
    _Statistics,
    compare_variance,
    decompose,
)
from unmask.fitted_times import RateProfile
from unmask.parts.maskings import MEASURED
from unmask.processes.ppots import RunningPPOTS
from unmask.recipes import SudokuModel
from unmask.token_rates import Delimiters

INDEPENDENT = MEASURED["independent"].masking


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SudokuModel(layers=1, width=16, heads=2).build()


@pytest.fixture(scope="module")
def rows():
    return load_sudoku("train", limit=400)


def test_known_variances_are_recovered():
    """y = row + rate + mask noise in 3 dimensions: A, B and C are the traces of the three covariances."""
    nested = Nested(row_sets=800, rates=3, masks=2)
    generator = torch.Generator().manual_seed(0)
    statistics = _Statistics(nested)
    for _ in range(nested.row_sets):
        row = 2.0 * torch.randn(1, 1, 3, generator=generator)
        rate = 1.0 * torch.randn(3, 1, 3, generator=generator)
        mask = 0.5 * torch.randn(3, 2, 3, generator=generator)
        statistics.add(5 + row + rate + mask)
    found = statistics.result(batch_size=4, seed=0)
    for part, truth in ((found.masks, 0.75), (found.rates, 3.0), (found.rows, 12.0), (found.total, 15.75)):
        assert part.low < 4 * truth < part.high
        assert part.value == pytest.approx(4 * truth, rel=0.15)
    assert found.parts == pytest.approx(found.total.value, rel=0.1)
    assert found.signal == pytest.approx(75, rel=0.05)


def test_the_noise_of_the_mean_is_not_taken_for_signal():
    """The squared length of a mean over 8 sets holds their noise, here 2000 / 8, beside the mean's own 20."""
    generator, mean = torch.Generator().manual_seed(2), 0.1
    statistics = _Statistics(Nested(row_sets=8, rates=2, masks=2))
    for _ in range(8):
        row = torch.randn(1, 1, 2000, generator=generator)
        statistics.add(mean + row + 0.1 * torch.randn(2, 2, 2000, generator=generator))
    assert statistics.result(batch_size=1, seed=0).signal == pytest.approx(20, abs=30)


def test_a_part_that_is_not_there_is_estimated_as_zero():
    """Unbiased means that the noise of masks is not taken for variance of rates or rows."""
    nested = Nested(row_sets=2000, rates=2, masks=2)
    generator = torch.Generator().manual_seed(1)
    statistics = _Statistics(nested)
    for _ in range(nested.row_sets):
        statistics.add(torch.randn(2, 2, 1, generator=generator))
    found = statistics.result(batch_size=1, seed=0)
    assert abs(found.rates.value) < 0.06
    assert abs(found.rows.value) < 0.06
    assert found.masks.value == pytest.approx(1, rel=0.1)


def test_parts_add_up_on_a_model(model, rows):
    found = decompose(model, INDEPENDENT, rows, batch_size=4, nested=Nested(40, 2, 2))
    for of in ("loss", "gradient"):
        assert found[of].total.low < found[of].parts < found[of].total.high


def test_exact_count_and_strata_remove_variance(model, rows):
    nested = Nested(24, 3, 2)
    plain = decompose(model, INDEPENDENT, rows, batch_size=8, nested=nested)["loss"]
    better = decompose(model, MEASURED["exact-count"].masking, rows, batch_size=8, nested=nested)["loss"]
    assert better.masks.value + better.rates.value < 0.5 * (plain.masks.value + plain.rates.value)


def test_it_repeats_exactly(model, rows):
    one, two = (
        decompose(model, IndependentMasking(pair="mirror"), rows, batch_size=4, nested=Nested(4, 2, 2))
        for _ in range(2)
    )
    assert asdict(one["loss"]) == asdict(two["loss"])


def test_an_arm_that_has_no_elbo_is_refused(model, rows):
    with pytest.raises(ValueError, match="all of"):
        decompose(model, IndependentMasking(Clipped()), rows)
    decompose(model, IndependentMasking(Clipped()), rows, objective=RowMean(), batch_size=2, nested=Nested(3, 2, 2))


@pytest.mark.parametrize("masking", [Blockwise(INDEPENDENT, 3), ProgressiveUnmasking()], ids=["blocks", "chain"])
def test_what_has_no_such_parts_is_refused(model, rows, masking):
    told = "only an IndependentMasking has rates, masks and rows to tell apart, got"
    with pytest.raises(ValueError, match=told):
        decompose(model, masking, rows, objective=RowMean())
    with pytest.raises(ValueError, match=f"arm 'other': {told}"):
        compare_variance(model, rows, {"other": (masking, RowMean())}, 4, Nested(3, 2, 2), seed=0)


def test_arms_may_be_called_anything(model, rows, capsys):
    """Names are no markup of the terminal."""
    found = compare_variance(model, rows, {"a[/b]": INDEPENDENT}, 4, Nested(3, 2, 2), seed=0)
    assert list(found) == ["a[/b]"]
    assert "variance of a[/b]: 1 of 1 arms" in capsys.readouterr().out


def test_compared_arms_are_fitted_first_and_saved(model, rows, tmp_path):
    arms = {
        "independent": INDEPENDENT,
        "fitted": IndependentMasking(PPOTS(grid=6, rows=3, masks=2, moment="gradient")),
    }
    found = compare_variance(model, rows, arms, 4, Nested(6, 2, 2), seed=0)
    unfitted = compare_variance(model, rows, {"fitted": INDEPENDENT}, 4, Nested(6, 2, 2), seed=0)
    assert asdict(found["independent"]["loss"]) == asdict(unfitted["fitted"]["loss"])
    assert asdict(found["fitted"]["loss"]) != asdict(unfitted["fitted"]["loss"])
    save_variance(tmp_path / "new" / "variance.json", found, {"why": "a test"})
    record = json.loads((tmp_path / "new" / "variance.json").read_text())
    assert record["about"] == {"why": "a test"}
    assert record["arms"]["fitted"]["gradient"] == asdict(found["fitted"]["gradient"])


@pytest.mark.parametrize("time", [PPOTS(grid=6, rows=3, masks=2), PPOTS(online=True)], ids=["measured", "online"])
def test_a_law_that_nothing_has_fitted_is_not_measured_as_the_uniform_it_begins_as(model, rows, time):
    nested, arms = Nested(3, 2, 2), {"first": INDEPENDENT, "unfitted": IndependentMasking(PPOTS(online=True))}
    for law in (time, time.start()):
        with pytest.raises(ValueError, match=r"PPOTS has not been fitted.*after its fit.*without online=True"):
            decompose(model, IndependentMasking(law), rows, batch_size=2, nested=nested)
    done = io.StringIO()
    with pytest.raises(ValueError, match="has not been fitted"):  # before time is spent on the first arm
        compare_variance(model, rows, arms, 2, nested, seed=0, console=Console(file=done))
    assert "variance of" not in done.getvalue()


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (IndependentMasking(pair="mirror"), "batch_size 3 does not divide into units of 2 rows: use a multiple of 2"),
        (IndependentMasking(coupling="antithetic"), "antithetic coupling pairs units"),
        (IndependentMasking(Clipped()), "all of"),
    ],
    ids=["units", "coupling", "objective"],
)
def test_every_arm_is_checked_before_the_first_is_measured(model, rows, arm, words):
    done = io.StringIO()
    with pytest.raises(ValueError, match=f"arm 'last': .*{words}"):
        compare_variance(model, rows, {"first": INDEPENDENT, "last": arm}, 3, Nested(3, 2, 2), 0, Console(file=done))
    assert done.getvalue() == ""


def test_a_law_is_measured_as_it_runs(model, rows):
    """Fitted online too; a law that leans to high rates has another variance than uniform rates."""
    found = {}
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    for online in (False, True):
        law = _fitted(PPOTS(online=online), t)
        masking = IndependentMasking(law)
        found[online] = asdict(decompose(model, masking, rows, batch_size=2, nested=Nested(3, 2, 2))["loss"])
    uniform = asdict(decompose(model, INDEPENDENT, rows, batch_size=2, nested=Nested(3, 2, 2))["loss"])
    assert found[True] == found[False] != uniform
    for law in (_fitted(PPOTS(online=True), t), _fitted(PPOTS(grid=4, rows=2, masks=2), t)):
        before = law.mass.clone()
        compare_variance(model, rows, {"running": (IndependentMasking(law), ELBO())}, 2, Nested(3, 2, 2), seed=0)
        assert torch.equal(law.mass, before)


def _fitted(time: PPOTS, t: torch.Tensor) -> RunningPPOTS:
    law = time.start()
    law.refit(RateProfile(t, t**2, t**4))
    return law


def test_a_pipe_is_told_how_long_it_takes(model, rows):
    said = Console(file=io.StringIO(), width=200)
    compare_variance(model, rows, {"a": INDEPENDENT, "b": INDEPENDENT}, 2, Nested(4, 2, 2), seed=0, console=said)
    lines = [line for line in said.file.getvalue().splitlines() if line.startswith("variance of")]
    assert [line.partition(", about")[0] for line in lines] == [
        "variance of a: 0 of 2 arms",
        "variance of a: 1 of 2 arms",
        "variance of b: 2 of 2 arms",
    ]


def test_rows_may_come_from_an_uneven_stream(model, rows):
    """Without observations every row is drawn alike, so only the rows differ from those of an even stream."""
    stream = RowStream(rows, importance=RowImportance())
    uneven = decompose(model, INDEPENDENT, stream, batch_size=4, nested=Nested(24, 2, 2))["loss"]
    even = decompose(model, INDEPENDENT, rows, batch_size=4, nested=Nested(24, 2, 2))["loss"]
    assert stream.position == 24 * 4
    assert even.masks.low < uneven.masks.value < even.masks.high


@pytest.mark.parametrize("name", ["standard", "complement", "half-life", "gift", "isad", "papl", "cap"])
def test_every_method_has_a_line(model, rows, name):
    named = MEASURED[name]
    masking = replace(named.masking, mask=Delimiters((1,))) if name == "isad" else named.masking
    found = compare_variance(model, rows, {name: (masking, named.objective)}, 4, Nested(3, 2, 2), seed=0)[name]
    assert found["gradient"].signal != 0
    assert found["loss"].total.value > 0


def test_a_resample_counts_no_copy_as_a_set_of_its_own():
    """Sets that all differ alike have the same variance in every resample that holds two of them: no interval."""
    nested = Nested(row_sets=8, rates=2, masks=2)
    statistics = _Statistics(nested)
    for place in torch.eye(8):
        statistics.add(place.expand(2, 2, 8))
    total = statistics.result(batch_size=1, seed=0).total
    assert total.value == pytest.approx(1.0)  # half the squared distance
    assert (total.low, total.high) == pytest.approx((1.0, 1.0))

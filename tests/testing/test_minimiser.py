"""Where training comes to rest: the tool itself, and the figures that the docs give."""

from pathlib import Path

import pytest
import torch

from unmask import (
    CAP,
    LIFT,
    PAPL,
    PPOTS,
    Bell,
    Delimiters,
    ExactCount,
    IndependentMasking,
    InverseRate,
    MaskedMean,
    RowMean,
)
from unmask.testing import TabularWorld, stationary

WORLD = TabularWorld.random(length=3, vocab_size=2)
DOCS = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text()
ISAD = IndependentMasking(mask=Delimiters((1,)))


@pytest.mark.parametrize(
    ("row", "masking", "objective"),
    [
        ("| `Delimiters` (ISAD) with its weight 1 / q (`InverseRate`) |", ISAD, InverseRate()),
        ("| `Delimiters` without it |", ISAD, MaskedMean()),
        ("| `PAPL()` |", IndependentMasking(), PAPL()),
        ("| `LIFT()` |", IndependentMasking(), LIFT()),
    ],
    ids=["isad", "isad without its weight", "papl", "lift"],
)
def test_the_docs_say_by_how_much_the_minimiser_moves(row, masking, objective):
    (line,) = [line for line in DOCS.splitlines() if line.startswith(row)]
    assert line.split("|")[-2].strip() == f"{stationary(masking, objective, WORLD).moved:.3f}"


@pytest.mark.parametrize(
    "masking",
    [
        IndependentMasking(Bell(), ExactCount(), "stratified"),
        IndependentMasking(pair="complement"),
        IndependentMasking(PPOTS(), pair="mirror", mirror_below=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", [RowMean(), MaskedMean()], ids=repr)
def test_masks_that_look_at_nothing_leave_it(masking, objective):
    found = stationary(masking, objective, WORLD, nodes=4)  # true at every rate, so of any quadrature
    assert found.moved < 1e-9
    assert len(found.position) == 3**2 * 3  # each position hidden, in every context of the other two


def test_strings_that_cannot_occur_do_no_harm():
    joint = torch.zeros(2, 2, 2)
    joint[0, 0, 0], joint[0, 1, 1], joint[1, 1, 1] = 0.5, 0.2, 0.3
    assert stationary(IndependentMasking(), PAPL(of="top"), TabularWorld(joint)).moved < 1e-9
    assert stationary(IndependentMasking(), PAPL(), TabularWorld(joint)).moved > 0.01


def test_a_model_that_is_wrong_is_not_where_training_rests():
    """The tool looks at the world's joint, not at its denoiser."""
    wrong = TabularWorld.random(length=3, vocab_size=2, error=1.0)
    assert torch.allclose(
        stationary(IndependentMasking(), MaskedMean(), wrong).truth,
        stationary(IndependentMasking(), MaskedMean(), WORLD).truth,
    )


def test_what_has_no_such_formula_is_refused():
    with pytest.raises(ValueError, match="entropy"):
        stationary(IndependentMasking(), CAP(), WORLD)

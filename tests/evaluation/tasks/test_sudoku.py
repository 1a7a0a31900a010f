"""Solving puzzles: what counts, per stratum, with intervals; the same noise for every model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from unmask import Decoding, MaskedDiffusionLM, SudokuTask
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, is_solved, load_sudoku
from unmask.evaluation.tasks import wilson
from unmask.recipes import SudokuModel


class Oracle(nn.Module):
    """A backbone that knows the answers: its hidden state is the one-hot digit of the solution."""

    def __init__(self, dataset, wrong_strata=()):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        tokens, maskable = torch.tensor(dataset["tokens"][:]), torch.tensor(dataset["maskable"][:])
        self.puzzles, self.answers = tokens.masked_fill(maskable, 0), tokens.clone()
        self.maskable = maskable
        for i, stratum in enumerate(dataset["stratum"][:]):
            if stratum in wrong_strata:
                self.answers[i] = self.answers[i] % 9 + 1

    def forward(self, input_ids, attention_mask=None):
        rows = []
        for ids in input_ids:
            fits = ((self.puzzles == ids) | self.maskable).all(1).nonzero()[:, 0]
            rows.append(self.answers[fits[0]])
        hidden = nn.functional.one_hot(torch.stack(rows), VOCAB_SIZE).float() * 50
        return type("Output", (), {"last_hidden_state": hidden})


def _oracle(dataset, **options) -> MaskedDiffusionLM:
    output = nn.Linear(VOCAB_SIZE, VOCAB_SIZE, bias=False)
    with torch.no_grad():
        output.weight.copy_(torch.eye(VOCAB_SIZE))
    return MaskedDiffusionLM(Oracle(dataset, **options), output, MASK_TOKEN)


@pytest.fixture(scope="module")
def puzzles():
    return load_sudoku("test", clues=(25, 45), limit=20)


def test_model_that_knows_the_answers_solves_everything(puzzles):
    found = SudokuTask(puzzles=20).evaluate(_oracle(puzzles), puzzles)
    assert found["solved"] == 1.0
    assert found["puzzles"] == 20
    assert found["interval"] == wilson(20, 20)
    assert found["loss"] == pytest.approx(0, abs=1e-5)
    assert {name: share["puzzles"] for name, share in found["strata"].items()} == dict.fromkeys(
        ("25-28", "29-32", "33-36", "37-40", "41-45"), 4
    )


def test_strata_are_counted_apart(puzzles):
    found = SudokuTask(puzzles=20).evaluate(_oracle(puzzles, wrong_strata=("25-28", "41-45")), puzzles)
    assert {name: share["solved"] for name, share in found["strata"].items()} == {
        "25-28": 0.0,
        "29-32": 1.0,
        "33-36": 1.0,
        "37-40": 1.0,
        "41-45": 0.0,
    }
    assert found["solved"] == pytest.approx(12 / 20)


def test_untrained_model_solves_nothing_at_log_v(puzzles):
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    found = SudokuTask().evaluate(model, puzzles)
    assert found["solved"] == 0.0
    assert found["loss"] == pytest.approx(math.log(VOCAB_SIZE - 1), abs=0.05)


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_batches_change_nothing_but_rounding(puzzles, batch_size):
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build().double()
    whole, parts = (SudokuTask(batch_size=size).evaluate(model, puzzles) for size in (250, batch_size))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    for name in ("solved", "strata", "forwards_per_token"):
        assert parts[name] == whole[name]


def test_evaluation_is_the_same_each_time_and_leaves_the_model_as_it_was(puzzles):
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = (SudokuTask().evaluate(model, puzzles) for _ in range(2))
    assert {k: v for k, v in first.items() if k != "tokens_per_second"} == {
        k: v for k, v in again.items() if k != "tokens_per_second"
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_cost_of_decoding_counts_row_forwards(puzzles):
    one, four = (SudokuTask(decoding=Decoding(tokens_per_step=n)).evaluate(_oracle(puzzles), puzzles) for n in (1, 4))
    assert one["forwards_per_token"] == 1.0
    empty = np.array(puzzles["maskable"][:]).sum(1)
    assert four["forwards_per_token"] == pytest.approx(np.ceil(empty / 4).sum() / empty.sum())


def test_last_evaluation_uses_more_puzzles():
    task = SudokuTask(puzzles=5, final_puzzles=10)
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    evaluate = task.start()
    assert evaluate(model, False)["puzzles"] == 5
    assert evaluate(model, True)["puzzles"] == 10


@pytest.mark.parametrize("form", ["grid", "pair"])
def test_one_puzzle_is_solved_cell_by_cell(form):
    dataset = load_sudoku("test", form=form, clues=(25, 45))
    few = dataset.select([3])
    seen = []
    puzzle, made = SudokuTask(form=form).solve_one(
        _oracle(few), 3, lambda step, tokens, masked: seen.append(int(masked.sum()))
    )
    answer = made.tokens[0, -81:].numpy()
    assert is_solved(answer, puzzle)
    assert seen == list(range(made.revealed - 1, -1, -1))


@pytest.mark.parametrize("split", ["test", "kaidoku"])
def test_both_splits_have_puzzles(split):
    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build()
    found = SudokuTask(split=split, puzzles=9, final_puzzles=9).start()(model, False)
    assert found["puzzles"] == 9


@pytest.mark.parametrize("field", ["puzzles", "final_puzzles", "batch_size"])
def test_sizes_are_checked(field):
    with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1"):
        SudokuTask(**{field: 0})


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (500, 1000)])
def test_wilson_interval_is_that_of_the_formula(successes, n):
    z, share = 1.959963984540054, successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert wilson(successes, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)

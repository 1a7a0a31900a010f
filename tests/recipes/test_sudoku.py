"""The Sudoku recipe: what it builds, and that its arms differ in masking alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from unmask import ExactCount, IndependentMasking, ProgressiveUnmasking, RowMean, RowStream, Uniform
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE
from unmask.evaluation.tasks import SudokuTask
from unmask.recipes import RECIPES, SudokuData, SudokuModel, sudoku
from unmask.runs.config import load_model, load_run

TINY = SudokuModel(layers=1, width=16, heads=2)


def test_arms_differ_in_masking_alone():
    baseline, puma = sudoku("uniform-count"), sudoku("puma")
    assert baseline.masking == IndependentMasking(time=Uniform(), mask=ExactCount())
    assert isinstance(puma.masking, ProgressiveUnmasking)
    assert puma.masking.threshold is not None  # with fast-forward
    assert replace(puma, masking=baseline.masking) == baseline
    assert baseline.objective == RowMean()


def test_recipe_is_listed_under_its_name():
    assert RECIPES["sudoku"] is sudoku
    assert sudoku().recipe == "sudoku"
    assert sudoku() == sudoku("uniform-count")


def test_unknown_masking_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="unknown masking 'pumma'; did you mean 'puma'"):
        sudoku("pumma")


def test_data_has_the_size_and_clues_asked_for():
    rows = SudokuData(clues=(30, 32), limit=50).load()
    assert len(rows) == 50
    assert all(30 <= n <= 32 for n in rows["clues"])
    assert len(SudokuData(form="pair", limit=2).load()["tokens"][0]) == 162


def test_same_seed_builds_the_same_model_at_log_v():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(TINY.build())
    states = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert (models[0].mask_token_id, models[0].head.vocab_size) == (MASK_TOKEN, VOCAB_SIZE)


def test_model_reads_in_both_directions():
    torch.manual_seed(0)
    model = TINY.build().double().eval()
    row = RowStream(SudokuData(limit=1).load()).rows(torch.tensor([0]))
    tokens = row.tokens.masked_fill(row.maskable, MASK_TOKEN)
    changed = tokens.clone()
    given = (~row.maskable[0]).nonzero()[-1, 0]
    changed[0, given] = changed[0, given] % 9 + 1
    first, second = (model.hidden(t, row.attention) for t in (tokens, changed))
    assert not torch.allclose(first[0, 0], second[0, 0], atol=1e-12)


@pytest.mark.parametrize("field", ["layers", "width", "heads", "positions"])
def test_model_sizes_are_checked(field):
    with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1"):
        SudokuModel(**{field: 0})


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="width 16 is not a multiple of heads 3"):
        SudokuModel(width=16, heads=3)


@pytest.mark.parametrize("average", [None, 0.5])
def test_run_loads_back_with_its_config_and_the_weights_it_was_evaluated_with(tmp_path, average):
    run = sudoku("puma")
    run = replace(
        run,
        data=SudokuData(limit=20),
        model=TINY,
        evaluation=SudokuTask(puzzles=5, final_puzzles=5),
        training=replace(
            run.training, steps=2, batch_size=4, ema_decay=average, tracker="none", threads=1, learning_rate=0.1
        ),
    )
    last = run.train(tmp_path / "run")
    loaded, folder = load_run(tmp_path / "run")
    assert (loaded, folder) == (run, last)
    assert load_run(last) == (run, last)
    weights = load_model(folder)._container[0].state_dict()
    saved = {
        which: load_file(file) for which in ("model", "ema") if (file := last / which / "model.safetensors").exists()
    }
    fits = {
        which: all(torch.equal(tensor, weights[name]) for name, tensor in tensors.items())
        for which, tensors in saved.items()
    }
    assert fits == ({"model": False, "ema": True} if average else {"model": True})


def test_pair_form_trains(tmp_path):
    run = sudoku()
    run = replace(
        run,
        data=SudokuData(form="pair", limit=20),
        model=replace(TINY, positions=162),
        evaluation=SudokuTask(form="pair", puzzles=5, final_puzzles=5),
        training=replace(run.training, steps=1, batch_size=4, tracker="none", threads=1),
    )
    assert run.train(tmp_path / "run").name == "step-00000001"


def test_forms_of_training_and_evaluation_must_agree():
    config = sudoku()
    with pytest.raises(ValueError, match=r"evaluation\.form"):
        replace(config, data=replace(config.data, form="pair"))


def test_rows_longer_than_the_model_are_refused_before_training(tmp_path):
    config = sudoku()
    pair = replace(
        config, data=replace(config.data, form="pair", limit=20), evaluation=replace(config.evaluation, form="pair")
    )
    with pytest.raises(ValueError, match="longer than the model's 81 positions"):
        pair.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_rows_are_not_trained_on():
    data = sudoku().data
    trained, held = data.load(), data.held_out()
    seen = {bytes(row) for row in trained.with_format("numpy")["tokens"][:].astype("int8")}
    assert not seen & {bytes(row) for row in held.with_format("numpy")["tokens"][:].astype("int8")}

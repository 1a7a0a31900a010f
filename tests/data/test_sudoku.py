import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.data import sudoku
from unmask.data.sudoku import (
    EMPTY_TOKEN,
    MASK_TOKEN,
    STRATA,
    VOCAB_SIZE,
    is_solved,
    load_sudoku,
    puzzle_of,
    render,
)

SPLITS = ("train", "test", "kaidoku")
FILES = Path(sudoku.__file__).parent / "files"
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sudoku.py"


def columns(split, **options):
    return load_sudoku(split, **options).with_format("numpy")[:]


@pytest.fixture(scope="module")
def splits():
    return {split: columns(split) for split in SPLITS}


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("numba")
    spec = importlib.util.spec_from_file_location("make_sudoku", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # numba looks its recursive function up there
    spec.loader.exec_module(module)
    return module


def peers(cell):
    row, column = divmod(cell, 9)
    return {
        other
        for other in range(81)
        if other // 9 == row or other % 9 == column or (other // 27, other % 9 // 3) == (cell // 27, cell % 9 // 3)
    } - {cell}


PEERS = [peers(cell) for cell in range(81)]


def solutions_of(puzzle):
    """Every solution, by plain search over sets of candidates: shares no code with the generator."""
    empty = [cell for cell in range(81) if puzzle[cell] == 0]
    if not empty:
        yield list(puzzle)
        return
    free = {cell: set(range(1, 10)) - {puzzle[peer] for peer in PEERS[cell]} for cell in empty}
    cell = min(empty, key=lambda cell: len(free[cell]))
    for digit in free[cell]:
        yield from solutions_of([*puzzle[:cell], digit, *puzzle[cell + 1 :]])


def rename_digits(grids):
    """Rename each grid's digits so that its first row reads 1 to 9."""
    position = np.argsort(grids[:, :9], axis=1)
    return np.take_along_axis(position, grids.astype(np.int64) - 1, axis=1) + 1


# --- the bundled files ---


def test_sizes_and_strata(splits):
    assert VOCAB_SIZE == MASK_TOKEN + 1
    names = [f"{least}-{most}" for least, most in STRATA]
    assert Counter(splits["train"]["stratum"].tolist()) == dict.fromkeys(names, 12_800)
    assert Counter(splits["test"]["stratum"].tolist()) == dict.fromkeys(names, 800)
    assert set(splits["kaidoku"]["stratum"].tolist()) == {f"level {level}" for level in range(1, 10)}
    assert len(splits["kaidoku"]["clues"]) >= 1000
    for split in ("train", "test"):
        for least, most in STRATA:
            inside = splits[split]["clues"][splits[split]["stratum"] == f"{least}-{most}"]
            assert set(inside.tolist()) == set(range(least, most + 1))


def test_training_rows_are_interleaved(splits):
    share = Counter(splits["train"]["stratum"][:2000].tolist())
    assert all(300 < count < 500 for count in share.values())


def test_every_stored_solution_solves_its_puzzle(splits):
    for rows in splits.values():
        puzzles = puzzle_of(rows["tokens"], rows["maskable"])
        assert np.array_equal((puzzles > 0).sum(axis=1), rows["clues"])
        assert is_solved(rows["tokens"], puzzles).all()


@pytest.mark.parametrize("split", SPLITS)
def test_puzzles_have_one_solution(split):
    rows = columns(split, limit=45)
    for tokens, maskable in zip(rows["tokens"], rows["maskable"], strict=True):
        assert list(solutions_of(puzzle_of(tokens, maskable).tolist())) == [tokens.tolist()]


def test_no_grid_is_shared_or_repeated_up_to_digit_names(splits):
    names = {split: [grid.tobytes() for grid in rename_digits(rows["tokens"])] for split, rows in splits.items()}
    assert sum(len(rows) for rows in names.values()) == len(set().union(*names.values()))


def test_bundled_files_stay_small():
    assert sum(path.stat().st_size for path in FILES.rglob("*") if path.is_file()) < 6_000_000
    assert "Copyright (c) 2017 Katsutoshi Seki" in (FILES / "KAIDOKU_LICENSE.txt").read_text()


# --- the loader ---


def test_forms_describe_the_same_puzzles():
    grid, pair = columns("test", limit=50), columns("test", form="pair", limit=50)
    assert grid["tokens"].shape == grid["maskable"].shape == (50, 81)
    assert pair["tokens"].shape == pair["maskable"].shape == (50, 162)
    assert not pair["maskable"][:, :81].any()
    assert pair["maskable"][:, 81:].all()
    assert np.array_equal(pair["tokens"][:, 81:], grid["tokens"])
    assert np.array_equal(pair["tokens"][:, :81] == EMPTY_TOKEN, grid["maskable"])
    puzzles = puzzle_of(grid["tokens"], grid["maskable"])
    assert np.array_equal(puzzles, puzzle_of(pair["tokens"], pair["maskable"]))
    masked = np.where(grid["maskable"], MASK_TOKEN, grid["tokens"])
    assert np.array_equal(puzzles, puzzle_of(torch.tensor(masked), torch.tensor(grid["maskable"])))


def test_rows_are_plain_and_in_memory():
    rows = load_sudoku("test", limit=2)
    assert rows.column_names == ["tokens", "maskable", "clues", "stratum"]
    assert rows.cache_files == []
    assert rows[0]["tokens"] == [int(token) for token in rows[0]["tokens"]]
    assert isinstance(rows[0]["clues"], int)
    batch = rows.with_format("torch")[:]
    assert batch["tokens"].dtype == torch.int64
    assert batch["maskable"].dtype == torch.bool


def test_limit_takes_strata_evenly_and_in_order():
    some = load_sudoku("train", limit=52)
    assert sorted(Counter(some["stratum"]).values()) == [10, 10, 10, 11, 11]
    assert some[:] == load_sudoku("train", limit=52)[:]
    assert len(load_sudoku("kaidoku", limit=10**6)) == len(load_sudoku("kaidoku"))


def test_limit_fills_up_from_the_strata_that_have_rows():
    strata = np.array(["a"] * 10 + ["b"] * 2)
    assert sudoku._even_choice(strata, 8).tolist() == [0, 1, 2, 3, 4, 5, 10, 11]


def test_clues_select_a_range():
    counts = columns("train", clues=(28, 30))["clues"]
    assert set(counts.tolist()) == {28, 29, 30}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"split": "train", "form": "pairs"}, "did you mean 'pair'"),
        ({"split": "train", "limit": 0}, "at least 1"),
        ({"split": "train", "clues": (50, 60)}, "meets 25 to 45"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_sudoku(**arguments)


# --- checking an answer ---


@pytest.fixture
def solved():
    row = columns("test", limit=1)
    return row["tokens"][0], puzzle_of(row["tokens"], row["maskable"])[0]


def test_a_valid_grid_that_changes_clues_is_wrong(solved):
    answer, puzzle = solved
    for digit in range(1, 9):
        swapped = np.where(answer == digit, digit + 1, np.where(answer == digit + 1, digit, answer))
        assert is_solved(swapped, np.zeros(81, dtype=int))
        assert not is_solved(swapped, puzzle)


def test_a_single_broken_clue_is_enough(solved):
    answer, puzzle = solved
    for cell in np.flatnonzero(puzzle):
        other = np.zeros(81, dtype=int)
        other[cell] = puzzle[cell] % 9 + 1
        assert not is_solved(answer, other)


def test_anything_but_a_permutation_is_wrong(solved):
    answer, puzzle = solved
    for cell in np.flatnonzero(puzzle == 0):
        for token in (answer[cell] % 9 + 1, EMPTY_TOKEN, MASK_TOKEN):
            wrong = answer.copy()
            wrong[cell] = token
            assert not is_solved(wrong, puzzle)


def test_each_kind_of_unit_counts():
    row, column = np.divmod(np.arange(81), 9)
    nothing_given = np.zeros(81, dtype=int)
    assert is_solved((row * 3 + row // 3 + column) % 9 + 1, nothing_given)
    assert not is_solved((row * 3 + column) % 9 + 1, nothing_given)  # only the columns are wrong
    assert not is_solved((column * 3 + row) % 9 + 1, nothing_given)  # only the rows
    assert not is_solved((row + column) % 9 + 1, nothing_given)  # only the boxes


def test_answers_come_in_any_batch_shape(solved):
    answer, puzzle = solved
    answers = torch.tensor(answer).repeat(2, 3, 1)
    answers[1, 2, 0] = MASK_TOKEN
    verdict = is_solved(answers, torch.tensor(puzzle))
    assert isinstance(verdict, np.ndarray)
    assert verdict.tolist() == [[True, True, True], [True, True, False]]


def test_wrong_shapes_are_refused(solved):
    answer, puzzle = solved
    with pytest.raises(ValueError, match=r"shape \[\.\.\., 81\], got \(162,\)"):
        is_solved(np.tile(answer, 2), puzzle)
    with pytest.raises(ValueError, match="one puzzle per answer"):
        is_solved(np.tile(answer, (3, 1)), np.tile(puzzle, (2, 1)))
    with pytest.raises(ValueError, match="not the mask token"):
        is_solved(answer, np.where(puzzle == 0, MASK_TOKEN, puzzle))
    with pytest.raises(ValueError, match="integers"):
        is_solved(answer.astype(float), puzzle)
    with pytest.raises(ValueError, match="one shape"):
        puzzle_of(answer, np.zeros(162, dtype=bool))
    with pytest.raises(ValueError, match="81 cells"):
        render(answer[:80])


def test_render_draws_the_board():
    grid = np.zeros(81, dtype=int)
    grid[[0, 1, 80]] = 5, MASK_TOKEN, 9
    lines = render(grid, highlight=np.arange(81) == 80).splitlines()
    assert lines[0] == " 5  ?  . | .  .  . | .  .  ."
    assert lines[3] == "---------+---------+---------"
    assert lines[-1] == " .  .  . | .  .  . | .  . [9]"
    assert len(lines) == 11


# --- the generator ---


@pytest.mark.slow
def test_generator_repeats_itself(script):
    first, again, other = (script.make_splits(seed, 4, 2) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["train_corners"], other["train_corners"])
    assert first["train_corners"].shape == (20, 32)
    assert first["test_clues"].shape == (10, 11)


def test_canonical_form_ignores_digit_names_and_turns(script):
    grids = columns("test", limit=5)["tokens"]
    renamed = np.random.default_rng(0).permutation(9).astype(np.int8)[grids - 1] + 1
    boards = renamed.reshape(-1, 9, 9)
    assert script.canonical(boards) == script.canonical(grids)
    assert script.canonical(boards.swapaxes(1, 2)) == script.canonical(grids)
    assert script.canonical(boards[:, ::-1]) == script.canonical(grids)
    assert len(set(script.canonical(grids))) == 5


@pytest.mark.slow
def test_committed_files_come_from_the_script(script):
    made = script.make_splits(script.SEED, script.TRAIN_PER_STRATUM, script.TEST_PER_STRATUM)
    with np.load(FILES / "sudoku.npz", allow_pickle=False) as committed:
        assert set(committed.files) == set(made)
        assert all(np.array_equal(committed[name], made[name]) for name in made)


@pytest.mark.slow
def test_script_accepts_the_committed_files(script):
    script.check()

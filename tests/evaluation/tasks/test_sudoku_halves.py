"""Halves of the unseen puzzles: what chooses a setting does not judge it."""

from __future__ import annotations

from collections import Counter

from unmask.evaluation.tasks import SudokuTask
from unmask.recipes import sudoku


def test_halves_share_no_puzzle_and_have_the_same_strata():
    whole, first, last = (SudokuTask(clues=(29, 45), half=half).load() for half in (None, 0, 1))
    rows = [{tuple(tokens) for tokens in part["tokens"]} for part in (whole, first, last)]
    assert rows[1] | rows[2] == rows[0]
    assert not rows[1] & rows[2]
    few = SudokuTask(clues=(29, 45), half=1).load(limit=40)
    assert set(Counter(few["stratum"]).values()) == {10}
    assert {tuple(tokens) for tokens in few["tokens"]} <= rows[2]


def test_the_recipe_is_judged_on_the_half_that_chose_nothing():
    task = sudoku().evaluation
    assert task.half == 1
    assert len(task.load(task.final_puzzles)) == task.final_puzzles

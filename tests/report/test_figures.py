"""Figures and tables, from records written by hand."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from unmask.evaluation.speedup import Arm
from unmask.report.figures import plot_curves
from unmask.report.tables import final_table, speed_table


def _arm(name: str, *solved: float) -> Arm:
    curve = [
        {
            "step": 100 * i,
            "seconds": 2.5 * i,
            "tokens": 5000 * i,
            "solved": share,
            "interval": [max(0, share - 0.1), min(1, share + 0.1)],
            "puzzles": 50,
            "strata": {"25-28": {"solved": share, "interval": [0.0, 1.0], "puzzles": 10}},
        }
        for i, share in enumerate(solved)
    ]
    return Arm(name, curve, {})


ARMS = [_arm("standard", 0.0, 0.3, 0.6), _arm("puma", 0.0, 0.6, 0.9)]


def _text(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("arms", [ARMS, ARMS[:1], [_arm(str(i), 0.0, 0.5) for i in range(12)]], ids=["2", "1", "12"])
def test_plot_writes_a_picture_of_the_curves(tmp_path, arms):
    plot_curves(arms, tmp_path / "curves.png", title="a title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] > (300, 300)


def test_picture_shows_what_was_measured(tmp_path):
    """Other numbers give another picture, the same numbers the same one."""
    other = [ARMS[0], _arm("puma", 0.0, 0.1, 0.2)]
    for name, arms in (("one", ARMS), ("same", ARMS), ("other", other)):
        plot_curves(arms, tmp_path / f"{name}.png")
    one, same, changed = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("one", "same", "other"))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, changed)


def test_svg_is_written_by_its_ending(tmp_path):
    plot_curves(ARMS, str(tmp_path / "curves.svg"), title="solved")
    assert "<svg" in Path(tmp_path / "curves.svg").read_text()


def test_final_table_names_shares_and_intervals():
    text = _text(final_table(ARMS))
    assert "all (50)" in text
    assert "60.0% (50.0% to 70.0%)" in text
    assert "90.0% (80.0% to 100.0%)" in text
    assert "25-28 (10)" in text


def test_speed_table_gives_steps_seconds_and_ratios():
    lines = _text(speed_table(ARMS)).splitlines()
    (half,) = (line.split() for line in lines if "50%" in line)
    assert [word for word in half if word[0].isdigit()] == ["50%", "200", "5", "100", "2", "2.00x", "2.00x"]
    (most,) = (line for line in lines if "90%" in line)
    assert "not reached" in most
    assert "x" not in most.replace("reached", "")
    (speed,) = (line for line in lines if "tokens/s" in line)
    assert speed.count("2,000") == 2


def test_losing_is_shown_as_it_is():
    (half,) = (line for line in _text(speed_table(ARMS[::-1])).splitlines() if "50%" in line)
    assert "0.50x" in half

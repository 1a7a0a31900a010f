"""Figures and tables, from records written by hand."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from unmask.evaluation.speedup import Arm
from unmask.report.figures import draw_rates, plot_curves, plot_times
from unmask.report.tables import final_table, speed_table
from unmask.store.metrics import MetricsLog


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
    (overall,) = (line for line in text.splitlines() if "all (50)" in line)
    assert overall.index("60.0 (50–70)") < overall.index("90.0 (80–100)")
    (stratum,) = (line for line in text.splitlines() if "25-28 (10)" in line)
    assert stratum.count("(0–100)") == 2
    (speed,) = (line for line in text.splitlines() if "tokens/s" in line)
    assert speed.count("2,000") == 2


def _rows(arms: list[Arm]) -> dict[str, list[list[str]]]:
    """Cells of the speed table's rows, by target."""
    found: dict[str, list[list[str]]] = {}
    target = ""
    for line in _text(speed_table(arms)).splitlines():
        if line.startswith("│"):
            first, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            target = first or target
            found.setdefault(target, []).append(cells)
    return found


def test_speed_table_gives_steps_seconds_and_ratios():
    rows = _rows(ARMS)
    assert rows["50%"] == [["standard", "200", "", "5", ""], ["puma", "100", "2.00x", "2", "2.00x"]]
    assert rows["25%"] == [["standard", "100", "", "2", ""], ["puma", "100", "1.00x", "2", "1.00x"]]
    assert rows["90%"] == [["standard", "not reached", "", "", ""], ["puma", "200", "", "5", ""]]
    assert "95%" not in rows


def test_losing_is_shown_as_it_is():
    assert _rows(ARMS[::-1])["50%"][1] == ["standard", "200", "0.50x", "5", "0.50x"]


T = [0.25, 0.5, 0.75, 1.0]
FITS = [
    {"step": 100, "density": [1.0] * 4},
    {
        "step": 200,
        "density": [0.5, 1.0, 1.0, 1.5],
        "moment": "loss",
        "optimum": "independent",
        "fit": {"a": 1.0, "r": 2.0, "b": 0.5, "q": 3.0, "A": 0.3, "k": 1.0, "m": 1.0},
        "kl": 0.0123,
        "t": T,
        "mean": T,
        "variance": T,
    },
]
STEPS = [{"step": 150, "by_rate": {"loss": [0.1, None, 0.5, 2.0], "gradient": [None, 0.2, 0.3, 0.4]}}]


def test_learnt_rates_are_drawn_with_the_fit_and_its_kl(tmp_path):
    plot_times(FITS, STEPS, tmp_path / "rates.svg", title="a run")
    assert "<svg" in (tmp_path / "rates.svg").read_text()
    changes = {"density": [2.0, 1.0, 0.5, 0.5], "variance": [4.0, 3.0, 2.0, 1.0], "kl": 0.5, "optimum": "stratified"}
    for name, value in {"": None, **changes}.items():
        plot_times([FITS[0], {**FITS[1], name: value}], STEPS, tmp_path / f"{name}.png")
    plot_times(FITS, [{**STEPS[0], "step": 190}], tmp_path / "step.png")
    pictures = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert len(set(pictures.values())) == len(changes) + 2


def test_density_without_a_fit_is_drawn(tmp_path):
    """A time distribution that learns need not fit anything."""
    plot_times(FITS[:1], [], tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 0


def _log_of(folder: Path, *fits: dict) -> None:
    log = MetricsLog(folder)
    for fit in fits:
        log.write(**fit)


def test_rates_are_drawn_from_the_log_of_a_run_that_learnt_some(tmp_path):
    _log_of(tmp_path, *({"kind": "time"} | fit for fit in FITS))
    draw_rates(tmp_path)
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_no_rates_are_drawn_where_none_were_learnt(tmp_path):
    _log_of(tmp_path)
    draw_rates(tmp_path)
    assert not (tmp_path / "rates.png").exists()


def test_rates_that_cannot_be_drawn_cost_a_warning_and_no_more(tmp_path):
    _log_of(tmp_path, *({"kind": "time"} | fit for fit in FITS))
    (tmp_path / "rates.png").mkdir()  # in the figure's place
    with pytest.warns(UserWarning, match="could not draw"):
        draw_rates(tmp_path)


def test_likelihoods_are_shown_like_solved_shares(tmp_path):
    def arm(name, *nats):
        curve = [
            {"step": 100 * i, "seconds": 2.5 * i, "tokens": 5000 * i, "rows": 64}
            | {"nats_per_token": n, "interval": [n - 0.125, n + 0.125]}
            for i, n in enumerate(nats)
        ]
        return Arm(name, curve, {})

    arms = [arm("standard", 3.5, 2.5, 2.25), arm("bell", 3.5, 2.25, 2.0)]
    text = _text(final_table(arms))
    assert "held-out negative ELBO, nats per token at the end (95% interval)" in text
    (overall,) = (line for line in text.splitlines() if "all (64)" in line)
    assert overall.index("2.250 (2.125–2.375)") < overall.index("2.000 (1.875–2.125)")
    assert "2.00x" in _text(speed_table(arms))
    plot_curves(arms, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000

"""Figures and tables, from records written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.report.figures import draw_rates, plot_times
from unmask.store.metrics import MetricsLog

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

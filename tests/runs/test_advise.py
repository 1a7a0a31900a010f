"""`unmask advise`: from nothing to a verdict, and what it refuses."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from unmask import advise
from unmask.evaluation.advice import ADVICE, Probe
from unmask.evaluation.results import RECORDS
from unmask.evaluation.speedup import ONE_SEED
from unmask.parts import named_masking
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.report.advice import advice_grid, advice_lines
from unmask.runs.advise import COSTS, ProbeConfig, _costs, _study, lasting, read_advice, seconds_a_step

TINY = ["--data.limit=64", "--model.layers=1", "--model.width=16", "--model.heads=2", "--batch-size=8", "--threads=1"]
TINY += ["--minutes=.02", "--seeds=1", "--rows=8", "--jobs=2"]
ARMS = {name: named_masking(name) for name in ("standard", "puma", "papl")}
BASE = sudoku()
BASE = replace(
    BASE,
    data=SudokuData(limit=40),
    model=SudokuModel(layers=1, width=16, heads=2),
    training=replace(BASE.training, batch_size=8, threads=1),
)


@pytest.mark.slow
def test_from_nothing_to_a_page(command, tmp_path):
    words = ["advise", "sudoku", "--arms", "standard", "puma", *TINY, "--probe-steps=4", "--out", str(tmp_path)]
    code, out, err = command(*words)
    assert code == 0, err
    told = err.index("2 runs of 4 steps (2 arms, 1 seeds;")
    assert told < err.index("step 0/4")  # said before anything is trained
    assert "Variance: left out" in err
    assert "behind the first" in out
    assert "One seed does not tell how training varies" in out
    saved = json.loads((tmp_path / ADVICE).read_text())
    assert saved["sure"] is False
    page = (tmp_path / "report.html").read_text()
    assert page.index("Which arm first") < page.index(saved["verdict"]) < page.index('id="verdict"')

    probe = Probe.load(tmp_path)
    assert read_advice(tmp_path, steps=4, horizon=probe.horizon, locality=probe.locality) == probe
    assert advice_lines(probe)[0] == saved["verdict"]
    rows = advice_grid(probe).rows
    assert [row[0] for row in rows] == [probe.advice.first, probe.advice.gaps[0].arm]
    assert rows[1][3] == ONE_SEED
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    costs = (tmp_path / COSTS).read_text()
    assert command(*words)[0] == 0  # nothing is timed or trained again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == before
    assert (tmp_path / COSTS).read_text() == costs


@pytest.mark.parametrize("arm", [*ARMS, "gift", "ppots"])
def test_steps_of_any_arm_are_timed(arm):
    config = replace(BASE, **named_masking(arm), training=replace(BASE.training, micro_batch_size=3))
    assert seconds_a_step(config, steps=1) > 0


def test_what_was_timed_of_another_run_is_not_read(tmp_path):
    said = io.StringIO()
    for size in (4, 4, 8):
        base = replace(BASE, training=replace(BASE.training, batch_size=size))
        study = _study(base, {name: ARMS[name] for name in ("standard", "puma")}, ProbeConfig(), steps=1)
        _costs(study, tmp_path, Console(file=said))
    assert [line.partition(":")[0] for line in said.getvalue().splitlines()] == ["standard", "puma"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "standard"], "--arms needs at least two different names"),
        (["--arms", "standard", "pumo"], "unknown masking 'pumo'; did you mean 'puma'"),
        (["--minutes", "0"], "minutes must be greater than 0"),
        (["--seeds", "0"], "seeds must be an integer of at least 1"),
        (["--probe-steps", "-3"], "probe steps must be an integer of at least 1"),
        (["--rows", "1"], "rows must be an integer of at least 2"),
    ],
)
def test_mistakes_are_explained_before_anything_is_trained(command, tmp_path, words, message):
    code, _, err = command("advise", "sudoku", "--data.limit=64", "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert message in err
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_own_data_need_data(command, tmp_path):
    code, _, err = command("advise", "sft", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "--data.source" in err


def test_a_single_arm_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least two arms, got puma"):
        advise(BASE, {"puma": ARMS["puma"]}, tmp_path, ProbeConfig())
    (tmp_path / ADVICE).write_text("{}")
    with pytest.raises(ValueError, match="holds no advice"):
        Probe.load(tmp_path)
    (tmp_path / RECORDS).write_text("")
    with pytest.raises(ValueError, match="at least two arms"):
        read_advice(tmp_path, steps=3, horizon=9)


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (29.6, "30 s"), (119, "119 s"), (121, "2 min")])
def test_short_times_are_told_in_seconds(seconds, words):
    assert lasting(seconds) == words

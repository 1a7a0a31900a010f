"""The command line on prompts and answers of the user's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.evaluation.records import load_records
from unmask.store.checkpoint import steps_of

SMALL = {
    "data.prompt": "question",
    "data.response": "answer",
    "model.layers": 1,
    "model.width": 16,
    "model.heads": 2,
    "steps": 4,
    "batch-size": 8,
    "evaluate-every": 2,
    "evaluation.rows": 4,
    "evaluation.decoding.steps": 2,
    "tracker": "none",
    "threads": 1,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with qa.csv and a run on it, which was started there: runs/qa."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"{i % 9} plus {i},{i % 9 + i}" for i in range(120)]
    (home / "qa.csv").write_text("question,answer\n" + "\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        options = [f"--{name}={value}" for name, value in SMALL.items()]
        main(["train", "sft", "--data.source", "qa.csv", "--out", "runs/qa", *options])
    return home


def test_every_interval_of_an_evaluation_holds_the_number_that_it_is_of(home):
    lines = map(json.loads, (home / "runs" / "qa" / "metrics.jsonl").read_text().splitlines())
    points = [line for line in lines if line["kind"] == "evaluation"]
    assert points
    for point in points:
        for key, of in (("interval", "solved"), ("nats_per_token_interval", "nats_per_token")):
            low, high = point[key]
            assert low <= point[of] <= high


def test_exact_answers_are_measured_again_on_any_rows(home, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = home / "runs" / "qa"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert command("evaluate", str(run), "--what", "tasks")[0] == 0
    (found,) = {(r.name, r.n, r.value, r.low, r.high) for r in load_records(run / "evaluation" / "tasks.json")}
    assert found == ("solved, all", last["puzzles"], last["solved"], *last["interval"])
    words = ("evaluate", str(run), "--what", "tasks", "likelihood", "--split", "train", "--rows=9")
    assert command(*words)[0] == 0
    assert {record.n for record in load_records(run / "evaluation" / "tasks.json")} == {9}


@pytest.fixture
def project(home, tmp_path) -> Path:
    """A copy of the folder and of all in it."""
    return shutil.copytree(home, tmp_path / "project")


def _resumed(command, run: str | Path, *words: str) -> str:
    """What is said when a run is resumed by its own config."""
    longer = ("--steps", "6", "--anneal-from", "4")
    code, _, err = command("train", f"{run}/config.json", "--out", str(run), "--resume", *longer, *words)
    assert code == 0, err
    assert steps_of(Path(run) / "checkpoints") == 6
    return err


@pytest.mark.parametrize("place", ["runs", "runs/qa", ".", "elsewhere"])
def test_a_run_goes_on_from_any_folder_of_a_project_that_was_moved(project, command, monkeypatch, place):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / place)
    _resumed(command, Path(os.path.relpath(project / "runs" / "qa")))


def test_what_a_run_starts_from_is_found_from_any_folder(project, command, monkeypatch):
    monkeypatch.chdir(project)
    words = ("train", "runs/qa/config.json", "--start", "runs/qa", "--out", "runs/next")
    assert command(*words)[0] == 0
    monkeypatch.chdir(project / "runs")
    _resumed(command, "next")


def test_a_run_goes_on_where_its_folder_is_a_link(project, command, monkeypatch):
    (project / "far" / "away").mkdir(parents=True)
    (project / "runs").rename(project / "far" / "away" / "runs")
    (project / "runs").symlink_to(project / "far" / "away" / "runs")
    monkeypatch.chdir(project)
    _resumed(command, "runs/qa", "--data.source", str(project / "qa.csv"))


def test_a_run_that_was_moved_alone_goes_on_with_the_file_that_its_path_ends_in(project, command, monkeypatch):
    (project / "runs" / "qa").rename(project / "qa")
    monkeypatch.chdir(project / "runs")
    _resumed(command, project / "qa", "--data.source", str(project / "qa.csv"))


def test_another_file_is_another_run(project, command, monkeypatch):
    shutil.copy(project / "qa.csv", project / "other.csv")
    monkeypatch.chdir(project)
    (project / "deep").mkdir()
    shutil.copy(project / "qa.csv", project / "deep" / "qa.csv")
    for source in ("other.csv", "deep/qa.csv", str(project / "deep" / "qa.csv")):
        words = ("--out", "runs/qa", "--resume", "--data.source", source)
        code, _, err = command("train", "runs/qa/config.json", *words)
        assert code == 2
        assert f"holds another run, it cannot be resumed: data.source: qa.csv -> {source}" in err


def test_a_resumed_run_says_from_where_it_goes_on(project, command, monkeypatch):
    monkeypatch.chdir(project)
    assert "goes on from step 4 of 6" in _resumed(command, "runs/qa")
    assert "step 6 of 6 is done: nothing is left" in _resumed(command, "runs/qa")
    code, _, err = command("train", "runs/qa/config.json", "--out", "runs/new", "--resume", "--anneal-from", "0")
    assert code == 0
    assert "there is no checkpoint to go on from: starts afresh" in err
    assert "afresh" not in command("train", "runs/qa/config.json", "--out", "runs/newer", "--anneal-from", "0")[2]

"""The command line on prompts and answers of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.evaluation.records import load_records

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

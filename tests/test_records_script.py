"""scripts.records: one command makes the records of experiments, goes on, and keeps what was made elsewhere."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDIES = """
from dataclasses import replace

from unmask import TrainingConfig
from unmask.evaluation.tasks import SudokuTask
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.runs.study import Arm, Study

base = replace(
    sudoku(),
    data=SudokuData(limit=20),
    model=SudokuModel(layers=1, width=16, heads=2),
    training=TrainingConfig(steps=2, batch_size=4, warmup_steps=1, threads=1),
    evaluation=SudokuTask(clues=(40, 45), puzzles=4, final_puzzles=4),
)
arms = {"control": {}, "other": Arm(seeds=())}
sums = Study("sums", base, arms, control="control", seeds=(1,), evaluate=0.5, checkpoint=None)
later = Study("later", base, {"control": Arm(seeds=()), "other": Arm(seeds=())}, control="control")
"""


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("scripts.records")


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "sums"
    folder.mkdir(parents=True)
    (folder / "study.py").write_text(STUDIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_records_lie_beside_the_study_and_are_the_same_again(records, root):
    with pytest.raises(SystemExit):
        records.main(["x"], root)
    records.main(["sums", "--gather"], root)
    assert not list(root.rglob("records.jsonl"))  # nothing was made, so nothing is said
    records.main([], root)
    made = root / "experiments" / "sums" / "records.jsonl"
    first = made.read_text(encoding="utf-8")
    assert [json.loads(line)["arm"] for line in first.splitlines()] == ["control"]
    whole = {file: file.stat().st_mtime_ns for file in (root / "runs").rglob("*.safetensors")}
    assert whole
    records.main([], root)
    assert made.read_text(encoding="utf-8") == first
    assert {file: file.stat().st_mtime_ns for file in (root / "runs").rglob("*.safetensors")} == whole

"""Committed records are of runs that their studies declare: no claim stands beside runs of something else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unmask.cli.study import load_studies
from unmask.config import to_json

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIED = sorted(file for file in EXPERIMENTS.rglob("records.jsonl") if "demo" not in file.parts)


def declared(experiment):
    """By study its control, and its runs by arm, seed and steps."""
    studies = load_studies(EXPERIMENTS / experiment / "study.py")
    return {one.name: (one.control, {(c.arm, c.seed, c.steps): c for c in one.every_cell()}) for one in studies}


def problem(record, studies):
    """In what a record differs from what the studies declare; None where it does not."""
    if record["study"] not in studies:
        return f"no study '{record['study']}'"
    control, cells = studies[record["study"]]
    cell = cells.get((record["arm"], record["seed"], record["steps"]))
    if cell is None:
        return f"no run {record['arm']}, seed {record['seed']}, {record['steps']} steps"
    if control != record["control"]:
        return f"control {record['control']}, declared {control}"
    for part, said in (("config", cell.config), ("training", cell.config.training)):
        made, known = record[part], to_json(said)
        for name in ("masking", "objective") if part == "config" else ("batch_size", "learning_rate", "ema_decay"):
            if name not in made or not same(made[name], known[name]):
                return f"{name} {made.get(name)}, declared {known[name]}"
    return None


def same(made, known):
    """Whether two values are the same in what both of them say; fields come and go with versions."""
    if isinstance(made, dict) and isinstance(known, dict):
        return all(same(made[name], known[name]) for name in made.keys() & known.keys())
    if isinstance(made, str) and isinstance(known, str):
        return made.split(":")[-1] == known.split(":")[-1]  # a type's module may have another name since
    return made == known


@pytest.mark.parametrize("file", STUDIED, ids=lambda file: "-".join(file.parent.relative_to(EXPERIMENTS).parts))
def test_records_are_of_runs_that_their_study_declares(file, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    studies = declared(file.relative_to(EXPERIMENTS).parts[0])
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert records
    assert {problem(record, studies) for record in records} == {None}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"arm": "gone"}, "no run gone"),
        ({"steps": 7}, "no run .* 7 steps"),
        ({"control": "other"}, "control other"),
        ({"study": "another"}, "no study"),
        ({"training": {"batch_size": 3}}, "batch_size 3"),
        ({"config": {"masking": {"type": "ProgressiveUnmasking", "policy": "random"}}}, "masking"),
    ],
)
def test_a_record_of_another_run_is_found(change, found, monkeypatch):
    """The control."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    studies = declared("letters")
    record = json.loads((EXPERIMENTS / "letters" / "records.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert problem(record, studies) is None
    assert re.match(found, problem(record | change, studies))

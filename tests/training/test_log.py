"""What trackers are told of a run."""

from __future__ import annotations

import inspect
from typing import ClassVar

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from unmask import Bell, IndependentMasking
from unmask.config import to_json
from unmask.training import read_metrics
from unmask.training.log import flattened, tracker_settings


@pytest.mark.parametrize("tracker", sorted(LOGGER_TYPE_TO_CLASS))
def test_settings_are_arguments_that_accelerate_and_its_tracker_take(tracker):
    settings = tracker_settings(tracker, "my run", {"training": {"steps": 3}})
    inspect.signature(Accelerator.init_trackers).bind(None, **settings)
    own = settings.get("init_kwargs", {}).get(tracker, {})
    inspect.signature(LOGGER_TYPE_TO_CLASS[tracker].__init__).bind(
        None, settings["project_name"], **own, logging_dir="."
    )


@pytest.mark.parametrize(("tracker", "field"), [("wandb", "name"), ("mlflow", "run_name")])
def test_trackers_get_the_name_and_the_config_of_the_run(tracker, field):
    run = {"masking": IndependentMasking(Bell(0.25))}
    settings = tracker_settings(tracker, "my run", {"run": to_json(run)})
    assert settings["init_kwargs"][tracker][field] == "my run"
    assert settings["config"]["run.masking.time.mean"] == 0.25
    assert all(isinstance(value, (bool, int, float, str)) for value in settings["config"].values())


def test_nested_values_become_one_level():
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": "[1, 2]", "d": "None"}


class Notes(GeneralTracker):
    """A tracker of a user's own, as accelerate lets them be added."""

    name = "notes"
    requires_logging_directory = False
    made: ClassVar[list[Notes]] = []

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project, self.config, self.logged, self.finished = project, {}, [], False
        self.made.append(self)

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_a_run_of_the_command_line_tells_its_tracker_name_config_and_figures(command, monkeypatch, tmp_path):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notes", Notes)  # what accelerate's register_tracker_class does
    small = ["--model.layers=1", "--model.width=16", "--model.heads=2", "--batch-size=4", "--data.limit=9"]
    small += ["--evaluation.puzzles=4", "--evaluation.final-puzzles=4", "--threads=1", "--steps=1"]
    code, _, said = command("train", "sudoku", "--tracker=notes", *small, "--out", str(tmp_path / "of-mine"))
    assert code == 0, said
    (notes,) = Notes.made
    assert (notes.project, notes.finished) == ("unmask", True)
    assert notes.config["name"] == "of-mine"
    assert (notes.config["training.steps"], notes.config["run.model.width"]) == (1, 16)
    told = {name: value for step, values in notes.logged if step == 1 for name, value in values.items()}
    assert told["train/loss"] == read_metrics(tmp_path / "of-mine", "train")[0]["loss"]
    assert "evaluation/solved" in told

"""What trackers are told of a run."""

from __future__ import annotations

import inspect

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from unmask import Bell, IndependentMasking
from unmask.config import to_json
from unmask.training.tracking import flattened, tracker_settings


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

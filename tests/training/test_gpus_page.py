"""docs/gpus.md says what is so: its tables are those that the script counts, its list of settings is the code's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from unmask.training.config import TrainingConfig
from unmask.training.launched import OURS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_gpus", ROOT / "scripts" / "make_gpus.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_the_committed_tables_are_those_that_are_counted(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.split(script.BEGIN)[1].split(script.END)[0].strip() == script.tables()


def test_the_page_names_what_a_launcher_does_not_decide_and_what_decides_instead(script):
    page = script.PAGE.read_text(encoding="utf-8")
    for theirs, _, ours in OURS.values():
        assert f"`{theirs}` (`{ours}`" in page
        assert hasattr(TrainingConfig(), ours)
    for name in ("rank_timeout_minutes", "checkpoint_minutes"):
        assert re.search(rf"`{name}`\s+\({getattr(TrainingConfig(), name):g}\)", page), name

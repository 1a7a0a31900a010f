"""`make mutants` runs tests by name: each of them is there, and every module."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS: dict[str, list[str]] = runpy.run_path(str(ROOT / "scripts" / "mutated.py"))["TESTS"]


@pytest.mark.parametrize("module", TESTS)
def test_the_tests_that_mutants_meet_are_there(module):
    assert (ROOT / "src/unmask" / f"{module}.py").is_file()
    for named in TESTS[module]:
        file, _, test = named.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), named


def test_make_mutants_tries_as_many_as_the_page_tells_of():
    """It forgets all verdicts of a module but those of the mutants that it draws."""
    verdicts = (ROOT / "scripts" / "mutants.jsonl").read_text(encoding="utf-8").splitlines()
    most = max(Counter(json.loads(line)["module"] for line in verdicts).values())
    assert f'"--each", type=int, default={most},' in (ROOT / "scripts" / "mutants.py").read_text(encoding="utf-8")

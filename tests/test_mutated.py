"""`make mutants` runs tests by name: each of them is there, and every module."""

from __future__ import annotations

import re
import runpy
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

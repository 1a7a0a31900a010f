"""Tables of the docs are what their records say: nothing in them is typed by hand or left from older records."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def papers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("scripts.pages.papers")


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("puma.md", "puma"),
        ("papers/variance_reduction.md", "variance"),
        ("papers/baselines.md", "baselines"),
        ("papers/reweighting.md", "reweighting"),
        ("papers/blocks.md", "blocks"),
    ],
)
def test_tables_are_those_of_the_records(papers, page, made):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    parts = getattr(papers, made)()
    assert parts
    for name, part in parts.items():
        shown = text.partition(f"<!-- {name}:begin -->\n")[2].partition(f"\n<!-- {name}:end -->")[0]
        assert shown == part, f"docs/{page} is older than its records: make pages"

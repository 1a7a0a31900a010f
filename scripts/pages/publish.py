"""Parts of pages that scripts write from records, between <!-- NAME:begin --> and <!-- NAME:end -->."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS, DOCS = ROOT / "experiments", ROOT / "docs"


def publish(page: Path, parts: Mapping[str, str]) -> None:
    """Put each part between its markers; ValueError for a page that lacks them."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no {begin} ... {end}")
        text = text.partition(begin)[0] + f"{begin}\n{part}\n{end}" + text.partition(end)[2]
    page.write_text(text, encoding="utf-8")

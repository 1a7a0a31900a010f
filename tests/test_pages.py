"""What docs, README and experiments/ show of the records is what these say: nothing is typed by hand or left over."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- ([\w-]+):begin -->\n).*?(\n<!-- \2:end -->)", re.DOTALL)


def test_every_page_is_that_of_the_records(tmp_path):
    """Made anew in a copy, in which every part that is marked to be written has another text."""
    for name in ("docs", "experiments", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    parts = 0
    for page in (tmp_path / "README.md", *(tmp_path / "docs").rglob("*.md")):
        text, found = MARKED.subn(r"\1stale\3", page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        parts += found
    assert parts > 15
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "scripts.pages"], cwd=tmp_path, env=environment, check=True)

    pages = [file.relative_to(tmp_path) for file in tmp_path.rglob("*.md")]
    old = [str(page) for page in pages if (tmp_path / page).read_bytes() != (ROOT / page).read_bytes()]
    assert not old, "older than their records: make pages"
    records = {file.parent.relative_to(tmp_path) for file in tmp_path.rglob("experiments/**/records.jsonl")}
    assert len(records) > 10
    assert records - {page.parent for page in pages if page.name == "summary.md"} <= {Path("experiments/demo")}

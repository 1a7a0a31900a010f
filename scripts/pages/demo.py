"""Put the records of a finished `make demo` where the README shows them.

    make demo && .venv/bin/python -m scripts.pages.demo

Copies the records to experiments/demo, each arm under the name that its masking and objective have in
`unmask.parts.maskings`, draws docs/demo.png from them, and writes the tables into the README between its markers. No
figure in the README is typed by hand. With --run experiments/demo the records that are there are published again.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.pages.publish import DOCS, EXPERIMENTS, ROOT, publish
from unmask.config import from_json
from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.parts.maskings import named_by
from unmask.report.costs import costs
from unmask.report.curves import plot_results
from unmask.report.study import ends, seeds_of, verdicts

HERE = EXPERIMENTS / "demo"


def named(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their arms named as the library names what was trained; where it has no name, as before."""
    names = {
        record["arm"]: named_by(*(from_json(record["config"][part]) for part in ("masking", "objective")))
        for record in records
    }
    return [{**r, **{key: names.get(r[key]) or r[key] for key in ("arm", "control")}} for r in records]


def main() -> None:
    """Of the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    options = parser.parse_args()
    write(options.run)


def write(run: Path) -> None:
    """Copy the records of a run of the demo, draw them and write the README's tables."""
    lines = (run / RECORDS).read_text(encoding="utf-8").splitlines()
    records = named([json.loads(line) for line in lines])
    (HERE / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    results = Results.of(read_records(HERE, "compare"))
    plot_results(results, DOCS / "demo.png", title=f"Sudoku: {seeds_of(results)}")
    console = Console(record=True, width=108, file=io.StringIO())
    console.print(*(grid.rich() for grid in (*ends(results), *costs(results))))
    console.print(*verdicts(results), sep="\n", soft_wrap=True)
    text = "\n".join(line.rstrip() for line in console.export_text().splitlines()).rstrip()
    picture = "![Unseen puzzles solved, against steps and seconds of training](docs/demo.png)"
    block = f"{picture}\n\n```text\n{text}\n```\n\nOne seed: an indication, not a proof."
    publish(ROOT / "README.md", {"demo": block})


if __name__ == "__main__":
    main()

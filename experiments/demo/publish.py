"""Put the records of a finished `make demo` where the README shows them.

    make demo && .venv/bin/python experiments/demo/publish.py

Copies metrics and configs of each arm to experiments/demo/records, draws docs/demo.png from them, and writes the
tables into the README between its markers. No figure in the README is typed by hand.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from rich.console import Console

from unmask.evaluation.speedup import Arm
from unmask.report.figures import plot_curves
from unmask.report.tables import final_table, speed_table

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).parent / "records"
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--arms", nargs="+", default=["standard", "puma", "high-rates"])
    options = parser.parse_args()
    for name in options.arms:
        target = RECORDS / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.jsonl", "config.json"):
            shutil.copy(options.run / name / file, target / file)
    arms = [Arm.load(RECORDS / name) for name in options.arms]
    plot_curves(arms, ROOT / "docs" / "demo.png", title="Sudoku: one seed, an indication")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(final_table(arms), speed_table(arms))
    text = console.export_text().rstrip()
    picture = "![Unseen puzzles solved, against steps and seconds of training](docs/demo.png)"
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    block = f"{BEGIN}\n{picture}\n\n```text\n{text}\n```\n\nOne seed: an indication, not a proof.\n{END}"
    (ROOT / "README.md").write_text(before + block + after)


if __name__ == "__main__":
    main()

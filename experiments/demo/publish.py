"""Put the records of a finished `make demo` where the README shows them.

    make demo && .venv/bin/python experiments/demo/publish.py

Copies the records to experiments/demo, draws docs/demo.png from them, and writes the tables into the README between
its markers. No figure in the README is typed by hand.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from rich.console import Console

from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.report.curves import plot_results
from unmask.report.study import costs, ends, seeds_of, verdicts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    options = parser.parse_args()
    if options.run.resolve() != HERE:
        shutil.copy(options.run / RECORDS, HERE / RECORDS)
    results = Results.of(read_records(HERE, "compare"))
    plot_results(results, ROOT / "docs" / "demo.png", title=f"Sudoku: {seeds_of(results)}")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(*(grid.rich() for grid in (*ends(results), *costs(results))))
    console.print(*verdicts(results), sep="\n", soft_wrap=True)
    text = "\n".join(line.rstrip() for line in console.export_text().splitlines()).rstrip()
    picture = "![Unseen puzzles solved, against steps and seconds of training](docs/demo.png)"
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    block = f"{BEGIN}\n{picture}\n\n```text\n{text}\n```\n\nOne seed: an indication, not a proof.\n{END}"
    (ROOT / "README.md").write_text(before + block + after)


if __name__ == "__main__":
    main()

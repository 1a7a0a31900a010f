"""Put tables and figures of the studies into docs/papers/, from their records alone.

python -m experiments.papers
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.publish import ROOT, publish
from unmask.evaluation.results import Results, read_records
from unmask.evaluation.variance import load_variance
from unmask.parts.maskings import MEASURED
from unmask.report.curves import plot_results
from unmask.report.grid import Grid
from unmask.report.study import caution, costs, ends, matched, seeds_of, verdicts

EXPERIMENTS, PAPERS = ROOT / "experiments", ROOT / "docs" / "papers"
PARTS = {"masks": "A, masks", "rates": "B, rates", "rows": "C, rows"}


def shown(grids: Sequence[Grid]) -> str:
    """Tables under their titles, in bold."""
    return "\n".join(
        f"**{grid.title}**\n\n{grid.table}" + (f"\n{grid.note}\n" if grid.note else "") for grid in grids if grid.rows
    )


def control_of(results: Results) -> str:
    """What the arms are compared with, by the library's own words where it has that name."""
    named = MEASURED.get(results.control)
    return f"The control is `{results.control}`" + (f" ({named.about})." if named else ".")


def text() -> dict[str, str]:
    """The study on letters: what was compared, and what was only screened."""
    folder = EXPERIMENTS / "sotu_bell"
    results = Results.of(read_records(folder, "compare"))
    plot_results(results, PAPERS / "bell.png", title=f"Letters: {seeds_of(results)}")
    grids = [*ends(results, "test"), *matched(results, "test"), *costs(results)]
    told = "\n".join(f"- {line}" for line in verdicts(results))
    part = f"{control_of(results)} {caution(results)}\n\n{told}\n\n![learning curves](bell.png)\n\n{shown(grids)}"
    if screened := read_records(folder, "screen"):
        part += f"\nOther seeds, to choose arms by:\n\n{shown(ends(Results.of(screened), None))}"
    return {"bell": part.rstrip()}


def variance() -> dict[str, str]:
    """A, B and C of the gradient, of the arms that a run can train, over the first one's sum."""
    grids = []
    for task in ("text", "sudoku"):
        arms = load_variance(EXPERIMENTS / "variance" / "records" / f"{task}-variance.json")
        arms = {name: found["gradient"] for name, found in arms.items() if not name.startswith(" ")}
        first, unit = next(iter(arms)), next(iter(arms.values())).parts
        rows = []
        for name, found in arms.items():
            parts = (getattr(found, part) for part in PARTS)
            cells = [f"{e.value / unit:.2f} ({e.low / unit:.2f} to {e.high / unit:.2f})" for e in parts]
            rows.append([name, *cells, f"{found.parts / unit:.2f}"])
        title = f"Variance of the gradient on {task}, A + B + C of {first} = 1"
        grids.append(Grid(title, ["arm", *PARTS.values(), "A + B + C"], rows))
    old = "stratified" in arms  # names of before maskings meant one thing everywhere
    note = "`standard` is here what is called `independent` now: rates from 0, not stratified, weaker than MDLM's."
    return {"variance": shown(grids).rstrip() + (f"\n\n{note}" if old else "")}


def baselines() -> dict[str, str]:
    """Where the baselines of the fields end in the saved studies."""
    grids = []
    for name in ("sotu_bell", "puma_sudoku/confirming"):
        results = Results.of(read_records(EXPERIMENTS / name, "compare"))
        for grid in ends(results):
            kept = [
                row for row in grid.rows if row[0] in ("standard", "llada", "uniform-count", "clipped", "independent")
            ]
            if "less" not in grid.title:
                grids.append(Grid(f"{results.name}: {grid.title}", grid.head[:3], [row[:3] for row in kept]))
    return {"baselines": shown(grids).rstrip()}


def main() -> None:
    """Write all of them."""
    publish(PAPERS / "bell.md", text())
    publish(PAPERS / "variance_reduction.md", variance())
    publish(PAPERS / "baselines.md", baselines())


if __name__ == "__main__":
    main()

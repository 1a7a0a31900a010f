"""Put tables and figures of the studies into docs/papers/, from their records alone.

python -m scripts.pages.papers
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from scripts.pages.publish import DOCS, EXPERIMENTS, publish
from unmask.cli.variance import ESTIMATES
from unmask.evaluation.decomposition import load_variance
from unmask.evaluation.results import Results, read_records
from unmask.parts.maskings import MEASURED
from unmask.report.costs import costs
from unmask.report.curves import plot_results, ranking_figure
from unmask.report.grid import Grid
from unmask.report.study import caution, ends, matched, seeds_of, spread, verdicts

PAPERS = DOCS / "papers"
CHAINS = {  # arms with chains, and those of independent rates that do well in the same study
    "Sudoku": ("puma_sudoku/confirming", ("puma",), ("higher-rates", "high-rates", "beta")),
    "Addition": ("addition/five-high", ("puma-high",), ("beta",)),
    "Worked sums": ("puma_text/worked-sums", ("puma", "puma-margin", "puma-masked-mean"), ("beta", "clipped")),
}
REWEIGHTED = ("papl", "cart", "lift", "cap", "syrm", "half-life")
ORDERS = ("confidence", "random", "left_to_right", "right_to_left")
PARTS = {"masks": "A, masks", "rates": "B, rates", "rows": "C, rows"}


def saved(folder: str) -> Results:
    """The compared runs of a study's records."""
    return Results.of(read_records(EXPERIMENTS / folder, "compare"))


def against(folder: str, control: str, arms: Collection[str]) -> Results:
    """Some arms of a study against another of its arms, at the budgets of that one."""
    records = read_records(EXPERIMENTS / folder, "compare")
    budgets = {r["steps"] for r in records if r["arm"] == control}
    return Results.of(
        [r | {"control": control} for r in records if r["arm"] in (control, *arms) and r["steps"] in budgets]
    )


def shown(grids: Sequence[Grid]) -> str:
    """Tables under their titles, in bold."""
    return "\n".join(
        f"**{grid.title}**\n\n{grid.table}" + (f"\n{grid.note}\n" if grid.note else "") for grid in grids if grid.rows
    )


def study(results: Results, final: str | None = None, figure: str = "") -> str:
    """Verdicts, a figure, what every arm ends at, horizons and costs."""
    told = "\n".join(f"- {line}" for line in verdicts(results))
    grids = [*ends(results, final), *matched(results, final), *costs(results)]
    parts = f"{control_of(results)} {caution(results)}", told, figure, shown(grids)
    return "\n\n".join(filter(None, parts)).rstrip()


def tables(results: Results, grids: Sequence[Grid]) -> str:
    """Tables below what they are compared with and how they are to be read."""
    return f"{control_of(results)} {caution(results)}\n\n{shown(grids)}".rstrip()


def control_of(results: Results) -> str:
    """What the arms are compared with, by the library's own words where it has that name."""
    named = MEASURED.get(results.control)
    return f"The control is `{results.control}`" + (f" ({named.about})." if named else ".")


def text() -> dict[str, str]:
    """The study on letters: what was compared, and what was only screened."""
    results = saved("sotu_bell")
    plot_results(results, PAPERS / "bell.png", title=f"Letters: {seeds_of(results)}")
    part = study(results, "test", "![learning curves](bell.png)") + "\n\nZero-shot, on another book:\n\n"
    part += shown([*ends(results, "moby-dick"), *matched(results, "moby-dick")])
    if screened := read_records(EXPERIMENTS / "sotu_bell", "screen"):
        part += f"\nOther seeds, to choose arms by:\n\n{shown(ends(Results.of(screened), None))}"
    return {"bell": part.rstrip(), "horizons": study(saved("ranking/horizons"), "test")}


def variance() -> dict[str, str]:
    """Noise of loss and gradient of every masking: in units of the first one's where both estimate the ELBO."""
    grids = []
    for task in ("text", "sudoku"):
        arms = load_variance(EXPERIMENTS / "variance" / task / "variance.json")
        first, rows = next(iter(arms)), []
        for name, found in arms.items():
            cells = [""] * (2 + len(PARTS))
            if name in (*ESTIMATES, "delimiters"):
                loss, gradient = (found[of].parts / arms[first][of].parts for of in ("loss", "gradient"))
                unit = arms[first]["gradient"].parts
                estimates = (getattr(found["gradient"], part) for part in PARTS)
                parts = [f"{e.value / unit:.2f} ({e.low / unit:.2f} to {e.high / unit:.2f})" for e in estimates]
                cells = [f"{loss:.2f}", *parts, f"{gradient:.2f}"]
            rows.append([name, *cells, f"{found['gradient'].over_signal:.3g}"])
        head = ["arm", "loss, A + B + C", *PARTS.values(), "gradient, A + B + C", "over the squared mean"]
        grids.append(Grid(f"On {task}; A + B + C of {first} = 1", head, rows))
    return {"variance": shown(grids).rstrip()}


def ranking() -> dict[str, str]:
    """The arms of the two small studies in the order in which they end."""
    parts = {}
    for name, final in (("letters", "test"), ("sums", None)):
        results = saved(f"ranking/{name}")
        steps = results.budgets()[-1]
        figure = ranking_figure(results, steps, final)
        assert figure is not None
        figure.savefig(DOCS / f"ranking-{name}.png", dpi=130)
        part = f"{control_of(results)} {caution(results)}"
        part += f"\n\n![differences from {results.control}](ranking-{name}.png)\n\n"
        parts[name] = (part + shown([*ends(results, final), *spread(results)])).rstrip()
    results = saved("ranking/spread")
    return parts | {"spread": tables(results, [*ends(results), *spread(results)])}


def chains() -> str:
    """What chains add to independent rates: the same runs, with the best of the latter as the control."""
    parts = []
    for task, (folder, arms, controls) in CHAINS.items():
        told = [(control, line) for control in controls for line in verdicts(against(folder, control, arms))]
        parts += [f"**{task}**", "\n".join(f"- against `{control}`: {line}" for control, line in told)]
    folder, arms, (first, *_) = CHAINS["Sudoku"]
    less = [grid for grid in ends(against(folder, first, arms)) if "less" in grid.title]
    return "\n\n".join([*parts, shown(less).rstrip()])


def puma() -> dict[str, str]:
    """PUMA on its three tasks, and what its settings on Sudoku were chosen by."""
    eight, horizons, paper = (saved(f) for f in ("addition/eight", "puma_sudoku/horizons", "puma_sudoku/paper"))
    parts = {
        part: study(saved(folder))
        for part, folder in (
            ("sudoku", "puma_sudoku/confirming"),
            ("addition", "addition/five"),
            ("high", "addition/five-high"),
            ("worked-sums", "puma_text/worked-sums"),
        )
    }
    told = {
        "screening": shown(ends(saved("puma_sudoku/screening"))),
        "short": shown(ends(saved("puma_sudoku/short"))),
        "sudoku-horizons": tables(horizons, [*ends(horizons), *matched(horizons)]),
        "sudoku-paper": tables(paper, ends(paper)),
        "chains": chains(),
        "sums-screening": shown(ends(saved("puma_text/screening"))),
        "letters": shown(ends(saved("letters"), "test")),
        "eight": tables(eight, [ends(eight, of)[0] for of in (None, *ORDERS)]),
    }
    return parts | {name: part.rstrip() for name, part in told.items()}


def baselines() -> dict[str, str]:
    """Where the baselines of the fields end in the saved studies."""
    grids = []
    for name in ("sotu_bell", "puma_sudoku/confirming"):
        results = saved(name)
        for grid in ends(results):
            kept = [
                row for row in grid.rows if row[0] in ("standard", "llada", "uniform-count", "clipped", "independent")
            ]
            if "less" not in grid.title:
                grids.append(Grid(f"{results.name}: {grid.title}", grid.head[:3], [row[:3] for row in kept]))
    return {"baselines": shown(grids).rstrip()}


def reweighting() -> dict[str, str]:
    """Arms that only weigh tokens anew, or only shift their rates, against the arm that lacks just that."""
    parts, base = {}, "unweighted"
    for name, final in (("letters", "test"), ("sums", None)):
        results = against(f"ranking/{name}", base, REWEIGHTED)
        parts[name] = tables(results, ends(results, final))
    return parts


def blocks() -> dict[str, str]:
    """Blocks that grow, and chains in them: under the noise of training and in two decoding orders."""
    results = saved("blocks")
    grids = [grid for final in (None, "left_to_right", "confidence") for grid in ends(results, final)]
    return {"blocks": tables(results, grids)}


def main() -> None:
    """Write all of them."""
    publish(PAPERS / "bell.md", text())
    publish(PAPERS / "variance_reduction.md", variance())
    publish(PAPERS / "baselines.md", baselines())
    publish(PAPERS / "reweighting.md", reweighting())
    publish(PAPERS / "blocks.md", blocks())
    publish(DOCS / "ranking.md", ranking())
    publish(DOCS / "puma.md", puma())


if __name__ == "__main__":
    main()

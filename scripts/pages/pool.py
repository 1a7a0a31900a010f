"""Draw docs/pool.png and docs/pool-size.png, and write the tables of docs/puma.md, from saved records alone.

python -m scripts.pages.pool
"""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.pages.publish import DOCS, EXPERIMENTS, publish
from unmask.evaluation.results import read_records
from unmask.report.grid import Grid

HERE = EXPERIMENTS / "pool"
POOLS = {"batch": "pool 16, the batch", "pool": "pool 512, the default", "large": "pool 1600"}
KINDS = {"repeated": "rows that come back, fresh masks", "random-chain": "random chain", "chain": "PUMA (confidence)"}


def solved(record: dict[str, Any]) -> float:
    """Percent of puzzles solved at the end."""
    return 100 * record["curve"][-1]["solved"]


def by_arm(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Percent solved of each arm's runs."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["arm"], []).append(solved(record))
    return found


def draw_control(panel: Axes, arms: dict[str, list[float]]) -> None:
    """Solved, with a dot for each seed."""
    names = ["uniform-count", *(f"{kind}-{pool}" for pool in POOLS for kind in KINDS)]
    colours = ["0.75", *(f"C{number}" for number, _ in enumerate(POOLS) for _ in KINDS)]
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        panel.barh(place, mean(arms[name]), color=colour)
        panel.plot(arms[name], [place] * len(arms[name]), "k.", ms=4)
    labels = ["uniform counts, every row new"]
    labels += [f"{label}, {pool}" for pool in POOLS.values() for label in KINDS.values()]
    panel.set_yticks(range(len(names)), labels, fontsize=8)
    panel.invert_yaxis()
    panel.set(xlabel="unseen puzzles solved, %")


def draw_gradients(panel: Axes) -> None:
    """Cosine of gradients against the steps between them."""
    found = json.loads((HERE / "gradients.json").read_text())
    for name, seeds in found["cosines"].items():
        panel.plot(found["distances"], [mean(values) for values in zip(*seeds, strict=True)], label=name)
    panel.set(xlabel="steps between two gradients", ylabel="mean cosine")
    panel.legend(frameon=False, fontsize=7)


def control_table(arms: dict[str, list[float]]) -> str:
    """Percent solved, mean over the seeds, of the control's arms."""
    rows = [[f"uniform counts, every row new: {mean(arms['uniform-count']):.1f}", *([""] * len(POOLS))]]
    rows += [[label, *(f"{mean(arms[f'{kind}-{pool}']):.1f}" for pool in POOLS)] for kind, label in KINDS.items()]
    seeds = len(arms["uniform-count"])
    note = f"Unseen puzzles solved after 800 steps, %; {seeds} seed{'s' * (seeds > 1)}."
    return f"{Grid('', ['masking', *POOLS.values()], rows).table}\n{note}"


Sizes = dict[tuple[int, int], dict[int, list[float]]]
"""Percent solved of each seed: by batch and stages, then by batches in the pool."""


def sizes(records: list[dict[str, Any]]) -> Sizes:
    """Those of the sweep's chains."""
    found: Sizes = {}
    for record in records:
        masking, batch = record["config"]["masking"], record["training"]["batch_size"]
        if "pool" in masking:
            here = found.setdefault((batch, masking["stages"]), {})
            here.setdefault(masking["pool"] // batch, []).append(solved(record))
    return {key: dict(sorted(found[key].items())) for key in sorted(found)}


def draw_sizes(figure: Figure, found: Sizes, baseline: list[float]) -> None:
    """Solved against the pool, in batches: a panel for each batch, a line for each number of stages, a dot a seed."""
    batches, stages_of = (sorted(set(every)) for every in zip(*found, strict=True))
    panels = figure.subplots(1, len(batches), sharey=True)
    for batch, panel in zip(batches, panels, strict=True):
        for stages in (stages for rows, stages in found if rows == batch):
            values = found[batch, stages]
            colour = f"C{stages_of.index(stages)}"
            panel.plot(list(values), [mean(each) for each in values.values()], colour, label=f"{stages} stages")
            dots = [(times, value) for times, each in values.items() for value in each]
            panel.plot(*zip(*dots, strict=True), "o", ms=4, color=colour, alpha=0.6)
        panel.axhline(mean(baseline), color="0.5", ls=":", label="uniform counts, 16 rows")
        panel.set(xscale="log", xlabel="chains in the pool, in batches", title=f"{batch} rows a step")
    panels[0].set_ylabel("unseen puzzles solved, %")
    panels[len(panels) // 2].legend(frameon=False, fontsize=8)


def sweep_table(found: Sizes, baseline: list[float]) -> str:
    """Percent solved by pool, a line for each batch and number of stages: the mean, and each seed's where several."""
    every = sorted({times for values in found.values() for times in values})
    rows = [
        [str(batch), str(stages), *(_seeds(values.get(times, [])) for times in every)]
        for (batch, stages), values in found.items()
    ]
    note = "Unseen puzzles solved, %, by batches in the pool: the mean, and in brackets its seeds. "
    note += f"Uniform counts, 16 rows a step: {_seeds(baseline)}."
    return f"{Grid('', ['rows a step', 'stages', *map(str, every)], rows).table}\n{note}"


def _seeds(values: list[float]) -> str:
    """A mean with what it is of."""
    each = f" ({', '.join(f'{value:.0f}' for value in values)})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{each}" if values else ""


def main() -> None:
    """Read the records, draw and write."""
    control = by_arm(read_records(HERE / "control"))
    figure = Figure(figsize=(10, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    draw_control(first, control)
    draw_gradients(second)
    figure.savefig(DOCS / "pool.png", dpi=130)
    records = read_records(HERE / "sweep")
    found, baseline = sizes(records), by_arm(records)["uniform-count"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    draw_sizes(figure, found, baseline)
    figure.savefig(DOCS / "pool-size.png", dpi=130)
    publish(DOCS / "puma.md", {"control": control_table(control), "sweep": sweep_table(found, baseline)})


if __name__ == "__main__":
    main()

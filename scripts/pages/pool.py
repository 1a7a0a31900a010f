"""Draw docs/pool.png and write the tables of docs/puma.md between its markers, from saved records alone.

python -m scripts.pages.pool
"""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.pages.publish import DOCS, EXPERIMENTS, publish
from unmask.evaluation.results import RECORDS

HERE = EXPERIMENTS / "pool"
POOLS = {"batch": "pool 16, the batch", "pool": "pool 512, the default", "large": "pool 1600"}
KINDS = {"repeated": "rows that come back, fresh masks", "random-chain": "random chain", "chain": "PUMA (confidence)"}


def read(name: str) -> list[dict[str, Any]]:
    """Records of a study."""
    return [json.loads(line) for line in (HERE / name / RECORDS).read_text(encoding="utf-8").splitlines()]


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
    lines = [f"| masking | {' | '.join(POOLS.values())} |", "|---" * (1 + len(POOLS)) + "|"]
    lines.append(f"| uniform counts, every row new: {mean(arms['uniform-count']):.1f} |" + " |" * len(POOLS))
    for kind, label in KINDS.items():
        cells = " | ".join(f"{mean(arms[f'{kind}-{pool}']):.1f}" for pool in POOLS)
        lines.append(f"| {label} | {cells} |")
    seeds = len(arms["uniform-count"])
    return "\n".join([*lines, "", f"Unseen puzzles solved after 800 steps, %; {seeds} seed{'s' * (seeds > 1)}."])


def main() -> None:
    """Read the records, draw and write."""
    control = by_arm(read("control"))
    figure = Figure(figsize=(10, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    draw_control(first, control)
    draw_gradients(second)
    figure.savefig(DOCS / "pool.png", dpi=130)
    publish(DOCS / "puma.md", {"control": control_table(control)})


if __name__ == "__main__":
    main()

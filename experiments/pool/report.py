"""Draw docs/pool.png and write the tables of docs/puma.md between its markers, from saved records alone.

python -m experiments.pool.report
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE, DOCS = Path(__file__).parent, Path(__file__).parents[2] / "docs"
KINDS = {"repeated": "rows that come back, fresh masks", "random-chain": "random chain", "chain": "PUMA (confidence)"}


def read(name: str) -> list[dict[str, Any]]:
    """Records of a study."""
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def solved(record: dict[str, Any]) -> float:
    """Percent of puzzles solved at the end."""
    return 100 * record["curve"][-1]["solved"]


def by_arm(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Percent solved of each arm's runs."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["arm"], []).append(solved(record))
    return found


def draw_sweep(panel: Axes, arms: dict[str, list[float]]) -> None:
    """Solved against the pool in batches, a line for each batch and number of stages."""
    lines: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for arm, values in arms.items():
        if found := re.fullmatch(r"batch-(\d+)-stages-(\d+)-times-(\d+)", arm):
            batch, stages, times = map(int, found.groups())
            lines.setdefault((batch, stages), []).append((times, mean(values)))
    for (batch, stages), points in sorted(lines.items()):
        panel.plot(*zip(*sorted(points), strict=True), "o-", ms=4, label=f"batch {batch}, K {stages}")
    panel.axhline(mean(arms["uniform-count"]), color="0.4", ls="--", label="uniform counts, batch 16")
    panel.set(xscale="log", xlabel="pool / batch", ylabel="unseen puzzles solved, %", ylim=(0, None))
    panel.legend(frameon=False, fontsize=8)


def draw_control(panel: Axes, arms: dict[str, list[float]]) -> None:
    """Solved, with a dot for each seed."""
    names = ["uniform-count", *(f"{kind}-{pool}" for pool in ("pool", "batch") for kind in KINDS)]
    for place, name in enumerate(names):
        panel.barh(
            place, mean(arms[name]), color="0.75" if name == "uniform-count" else f"C{name.endswith('batch'):d}"
        )
        panel.plot(arms[name], [place] * len(arms[name]), "k.", ms=4)
    labels = [
        "uniform counts",
        *(f"{label}, {pool}" for pool in ("pool 1600", "pool 16") for label in KINDS.values()),
    ]
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
    lines = ["| masking | pool 16 = the batch | pool 1600 |", "|---|---|---|"]
    lines.append(f"| uniform counts, every row new | {mean(arms['uniform-count']):.1f} | |")
    for kind, label in KINDS.items():
        cells = " | ".join(f"{mean(arms[f'{kind}-{where}']):.1f}" for where in ("batch", "pool"))
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def sweep_table(arms: dict[str, list[float]]) -> str:
    """Percent solved for each pool."""
    found = {arm: re.fullmatch(r"batch-(\d+)-stages-(\d+)-times-(\d+)", arm) for arm in arms}
    cells = {tuple(map(int, m.groups())): mean(arms[arm]) for arm, m in found.items() if m}
    times = sorted({key[2] for key in cells})
    lines = [f"| pool / batch | {' | '.join(map(str, times))} |", "|---" * (len(times) + 1) + "|"]
    for batch, stages in sorted({key[:2] for key in cells}):
        row = (f"{cells[batch, stages, t]:.1f}" if (batch, stages, t) in cells else "" for t in times)
        lines.append(f"| batch {batch}, K {stages} | {' | '.join(row)} |")
    return "\n".join([*lines, "", f"Uniform counts, batch 16: {mean(arms['uniform-count']):.1f}."])


def publish(page: Path, parts: dict[str, str]) -> None:
    """Put each part between <!-- NAME:begin --> and <!-- NAME:end --> of a page."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Read the records, draw and write."""
    sweep, control = by_arm(read("sweep")), by_arm(read("control"))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    draw_sweep(first, sweep)
    draw_control(second, control)
    draw_gradients(third)
    figure.savefig(DOCS / "pool.png", dpi=130)
    publish(DOCS / "puma.md", {"sweep": sweep_table(sweep), "control": control_table(control)})


if __name__ == "__main__":
    main()

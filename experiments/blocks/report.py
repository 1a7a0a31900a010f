"""Write summary.md and curves.png from records.jsonl.

python -m experiments.blocks.report
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.common import paired, read, table

HERE = Path(__file__).parent
CONTROL = "fixed"


def main() -> None:
    """Read the records, write the page and the figure."""
    records = read(HERE / "records.jsonl")
    runs: dict[str, dict[int, dict]] = {}
    for record in records:
        runs.setdefault(record["arm"], {})[record["seed"]] = record
    measures = list(records[0]["nats"])
    rows = []
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm, of_seed in runs.items():
        both = sorted(of_seed.keys() & runs[CONTROL].keys())
        cells = []
        for name in measures:
            cells.append(f"{mean(run['nats'][name] for run in of_seed.values()):.3f}")
            if arm != CONTROL:
                change = [of_seed[s]["nats"][name] - runs[CONTROL][s]["nats"][name] for s in both]
                cells[-1] += f" [{paired(change, scale=1, digits=3)}]"
        seconds = mean(run["curve"][-1]["seconds"] for run in of_seed.values())
        rows.append([arm, len(of_seed), *cells, f"{seconds:.0f}"])
        steps = [point["step"] for point in next(iter(of_seed.values()))["curve"]]
        curves = [[point["loss"] for point in run["curve"]] for run in of_seed.values()]
        axes.plot(steps, [mean(values) for values in zip(*curves, strict=True)], label=arm)
    axes.set(xlabel="steps", ylabel="nats per character, block ELBO")
    axes.set_ylim(top=3)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(HERE / "curves.png", dpi=150)
    some = records[0]
    head = ["arm", "seeds", *measures, "seconds"]
    lines = [
        "# Blocks that grow during training",
        "",
        f"Text in 27 letters, rows of 128, {some['steps']} steps of 16 rows; nats per character on {some['rows']} "
        "unseen rows, lower is better. In brackets: arm less fixed blocks, with 95% interval, paired by seed.",
        "",
        *table(head, rows),
        "",
        "![learning curves](curves.png)",
    ]
    (HERE / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

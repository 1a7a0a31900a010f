"""Write summary.md and curves.png from records.jsonl.

python -m experiments.blocks.report
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from experiments.common import against, grouped, plot_curves, read, table

HERE = Path(__file__).parent
CONTROL = "fixed"


def main() -> None:
    """Read the records, write the page and the figure."""
    records = read(HERE / "records.jsonl")
    runs = grouped(records)
    measures = list(records[0]["nats"])
    rows = []
    for arm, of_seed in runs.items():
        cells = []
        for name in measures:
            found, control = ({s: run["nats"][name] for s, run in runs[a].items()} for a in (arm, CONTROL))
            change = "" if arm == CONTROL else f" [{against(found, control, scale=1, digits=3)}]"
            cells.append(f"{mean(found.values()):.3f}{change}")
        seconds = mean(run["curve"][-1]["seconds"] for run in of_seed.values())
        rows.append([arm, len(of_seed), *cells, f"{seconds:.0f}"])
    plot_curves(runs, "loss", "nats per character, block ELBO", HERE / "curves.png", top=3)
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

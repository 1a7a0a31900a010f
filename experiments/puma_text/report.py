"""Write summary.md and curves.png from records.jsonl.

python -m experiments.puma_text.report
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np

from experiments.common import against, grouped, mean_curve, plot_curves, read, table

HERE = Path(__file__).parent
TARGETS = (0.25, 0.5, 0.75, 0.9)


def main() -> None:
    """Read the records, write the page and the figure."""
    records = read(HERE / "records.jsonl")
    last = [record for record in records if record["arm"] != "causal"][-1]["steps"]
    runs = grouped(record for record in records if record["arm"] != "causal" and record["steps"] == last)
    start = [record for record in records if record["arm"] == "causal"][-1]
    some = next(iter(runs["standard"].values()))
    final, reached = [], []
    for arm, of_seed in runs.items():
        solved = {seed: run["curve"][-1]["solved"] for seed, run in of_seed.items()}
        other = arm.replace("puma", "standard")
        control = {seed: run["curve"][-1]["solved"] for seed, run in runs[other].items()}
        change = against(solved, control) if arm != other else ""
        final.append([arm, len(solved), f"{100 * mean(solved.values()):.1f}", change])
        steps, _, curve = mean_curve(of_seed, "solved")
        best = np.maximum.accumulate(curve)
        at = (str(round(float(np.interp(t, best, steps)))) if best[-1] >= t else "" for t in TARGETS)
        reached.append([arm, *at])
    lines = [
        "# Question and worked answer: PUMA, from scratch and from an autoregressive model",
        "",
        f"Sums of four digits of reasoning-gym; {some['steps']} steps of 64 rows; right final answers to unseen "
        f"questions. Arms with -ar start from a causal model after {start['steps']} steps, which has "
        f"{100 * start['curve'][-1]['solved']:.1f}% right by itself.",
        "",
        *table(["arm", "seeds", "right %, at the end", "less standard, points (95%)"], final),
        "",
        "Steps to a share of right answers, mean curve:",
        "",
        *table(["arm", *(f"{100 * t:.0f}%" for t in TARGETS)], reached),
        "",
        "![learning curves](curves.png)",
    ]
    plot_curves(runs, "solved", "right answers, %", HERE / "curves.png", scale=100)
    (HERE / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

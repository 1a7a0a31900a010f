"""Write summary.md and curves.png from records.jsonl.

python -m experiments.sotu_bell.report
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np

from experiments.common import Runs, against, grouped, mean_curve, plot_curves, read, table

HERE = Path(__file__).parent
CONTROL = "standard"


def nats(of_seed: dict[int, dict], corpus: str) -> dict[int, float]:
    """Negative ELBO at the end, by seed."""
    return {seed: run["nats"][corpus]["value"] for seed, run in of_seed.items()}


def final_table(runs: Runs, control: Runs, corpora: list[str], what: str) -> list[str]:
    """One row an arm; `control` has the runs of standard that it is compared with."""
    rows = []
    for arm, of_seed in runs.items():
        row = [arm, len(of_seed)]
        for corpus in corpora:
            found, other = nats(of_seed, corpus), nats(control[CONTROL], corpus)
            row += [f"{mean(found.values()):.3f}", against(found, other, scale=1, digits=3)]
        rows.append(row)
    head = [cell for corpus in corpora for cell in (f"{corpus}, nats", f"{corpus}, less {what} (95%)")]
    return table(["arm", "seeds", *head], rows)


def generated_table(runs: Runs) -> list[str]:
    """Texts generated at the end, mean over seeds."""
    rows = []
    for arm, of_seed in runs.items():
        made = [run["generated"] for run in of_seed.values()]
        perplexity = [g["perplexity"]["value"] for g in made if "perplexity" in g]
        row = [arm, f"{mean(g['unigram_entropy']['value'] for g in made):.3f}"]
        row += [f"{mean(g['distinct'][n] for g in made):.3f}" for n in range(3)]
        rows.append([*row, f"{mean(perplexity):.0f}" if perplexity else ""])
    return table(["arm", "entropy, nats", "distinct-1", "distinct-2", "distinct-3", "perplexity"], rows)


def crossing_table(runs: Runs) -> list[str]:
    """When the mean curve of an arm reaches the last point of standard's, interpolated between evaluations."""
    steps, _, control = mean_curve(runs[CONTROL], "nats_per_token")
    rows = []
    for arm, of_seed in runs.items():
        x, _, value = mean_curve(of_seed, "nats_per_token")
        best, cells = np.minimum.accumulate(value), ["", ""]
        if best[-1] <= control[-1]:
            at = float(np.interp(-control[-1], -best, x))
            cells = [str(round(at)), f"{steps[-1] / at:.2f}x"]
        rows.append([arm, *cells, f"{1e3 * fastest_step(of_seed):.0f}"])
    return table(["arm", f"steps to {CONTROL}'s end", "fewer steps", "ms a step"], rows)


def fastest_step(of_seed: dict[int, dict]) -> float:
    """Seconds of a step where the machine was least busy: runs shared it with others, so whole times say nothing."""
    curves = [run["curve"] for run in of_seed.values()]
    return min(
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for curve in curves
        for before, after in pairwise(curve)
    )


def main() -> None:
    """Read the records, write the page and the figure."""
    records = read(HERE / "records.jsonl")
    lines = ["# Bell-shaped rates and the others on State of the Union addresses", ""]
    lines += [
        "Letters, rows of 128, 16 rows a step; negative ELBO in nats per letter, lower is better. Every run's "
        "learning rate is annealed over its own steps. Unweighted: uniform rates, stratified, without the 1/t "
        "weight; bell: the same with bell-shaped rates; best: bell with exact counts.",
        "",
    ]
    screen = grouped(r for r in records if r["screen"])
    if screen:
        steps = next(iter(screen[CONTROL].values()))["steps"]
        lines += [f"## Screening: one seed, {steps} steps, validation addresses", ""]
        lines += [*final_table(screen, screen, ["sotu"], CONTROL), "", *crossing_table(screen), ""]
    fresh = [r for r in records if not r["screen"]]
    budgets = sorted({r["steps"] for r in fresh})
    by_budget = {steps: grouped(r for r in fresh if r["steps"] == steps) for steps in budgets}
    corpora = list(fresh[0]["nats"]) if fresh else []
    for steps, runs in by_budget.items():
        if CONTROL not in runs:
            continue
        lines += [f"## Fresh paired seeds, {steps} steps, test addresses", ""]
        lines += [*final_table(runs, runs, corpora, CONTROL), ""]
        lines += [
            "Steps until the mean learning curve, on validation rows, reaches the end of standard's. A step's time "
            "is the least between two evaluations: the machine was shared.",
            "",
        ]
        lines += [*crossing_table(runs), "", "Generated texts (48 rows, random order, two tokens a step):", ""]
        lines += [*generated_table(runs), ""]
    for short in budgets:
        for whole in budgets:
            if short < whole and CONTROL in by_budget[whole]:
                lines += [f"## Matched horizons: {short} steps against standard's {whole}", ""]
                what = f"{CONTROL} at {whole}"
                lines += [*final_table(by_budget[short], by_budget[whole], corpora, what), ""]
    drawn = by_budget[budgets[-1]] if budgets else screen
    plot_curves(drawn, "nats_per_token", "held-out nats per letter", HERE / "curves.png", top=2.8)
    lines += ["![learning curves](curves.png)"]
    (HERE / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

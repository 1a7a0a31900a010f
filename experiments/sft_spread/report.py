"""Write summary.md from records.jsonl and variance.jsonl.

python -m experiments.sft_spread.report
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

import scipy.stats

from experiments.common import against, grouped, read, table

HERE = Path(__file__).parent
CONTROL = "independent"
PARTS = ("masks", "rates", "rows")
TITLES = {"chain_sums": "Sums of three digits, worked out", "word_problems": "gsm_symbolic, worked out"}


def accuracy(records: list[dict]) -> list[str]:
    """Right answers and their spread over seeds, of every arm."""
    runs, rows = grouped(records), []
    for arm, of_seed in runs.items():
        solved = {seed: run["solved"] for seed, run in of_seed.items()}
        control = {seed: run["solved"] for seed, run in runs.get(CONTROL, {}).items()}
        values = [100 * value for value in solved.values()]
        spread = deviation(values)
        least = f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else ""
        noise = [jumps(run["norms"]) for run in of_seed.values() if "norms" in run]
        change = against(solved, control) if arm != CONTROL else ""
        rows.append(
            [arm, len(values), f"{mean(values):.1f}", spread, least, change, f"{mean(noise):.2f}" if noise else ""]
        )
    head = ["arm", "seeds", "right %", "deviation over seeds (95%)", "least to most", f"less {CONTROL}, points (95%)"]
    return table([*head, "jumps of the gradient's length"], rows)


def deviation(values: list[float]) -> str:
    """Standard deviation of normal values, with its 95% chi-square interval."""
    if len(values) < 2:
        return ""
    free, found = len(values) - 1, stdev(values)
    low, high = (found * (free / scipy.stats.chi2.ppf(q, free)) ** 0.5 for q in (0.975, 0.025))
    return f"{found:.1f} ({low:.1f} to {high:.1f})"


def jumps(norms: list[float]) -> float:
    """Median of |difference of neighbours| over their mean: noise of the gradient's length, whatever its trend."""
    return median(2 * abs(b - a) / (a + b) for a, b in pairwise(norms))


def variance(records: list[dict]) -> list[str]:
    """A, B and C of the gradient over the control's sum of them at the same step, and the noise over the signal."""
    units = {r["step"]: sum(r[part]["value"] for part in PARTS) for r in records if r["arm"] == CONTROL}
    rows = []
    for record in records:
        cells, parts = [], [part for part in PARTS if part in record]
        for part in PARTS:
            if record["arm"] == "causal":  # its gradient is another model's
                cells.append("")
                continue
            value, low, high = (record[part][key] / units[record["step"]] for key in ("value", "low", "high"))
            cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        noise = sum(record[part]["value"] for part in parts) / record["signal"]
        rows.append([record["step"], record["arm"], *cells, f"{noise:.1f}" if 0 < noise < 1000 else ""])
    return table(
        ["fine-tuning steps", "arm", "A, masks", "B, rates", "C, rows", "A + B + C over the squared mean"], rows
    )


def main() -> None:
    """Read the records, write the page."""
    records, lines = read(HERE / "records.jsonl"), ["# Fine-tuning: accuracy and its spread", ""]
    for task, steps in sorted({(record["task"], record["steps"]) for record in records}):
        lines += [f"## {TITLES[task]}: {steps} steps of 16 rows", ""]
        if task == "chain_sums":
            lines += [
                "Questions differ from those fine-tuned on; pretraining may have shown their final answers, alike "
                "for all arms. Jumps: median change of the gradient's length between logged steps, over its mean.",
                "",
            ]
        lines += [*accuracy([r for r in records if (r["task"], r["steps"]) == (task, steps)]), ""]
    if (HERE / "variance.jsonl").exists():
        lines += [
            "## The gradient's variance",
            "",
            f"Times the forwards of a batch, over {CONTROL}'s sum at the same step, with 95% intervals over row "
            "sets. Last column: so many forwards make a batch's noise as large as its signal; empty where the signal "
            "is too weak to be told from nothing.",
            "",
            *variance([r for r in read(HERE / "variance.jsonl") if r["task"] == "chain_sums"]),
        ]
    (HERE / "summary.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

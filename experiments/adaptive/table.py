"""Write summary.md: every arm's result by task, number of steps and seed, from records.jsonl.

python experiments/adaptive/table.py
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent


def name_of(arm: str) -> str:
    """One name for arms typed in several ways: clipped-.5-1 is clipped-0.5-1."""
    return re.sub(r"-(\.\d+)", r"-0\1", arm)


def table(records: list[dict]) -> list[str]:
    """Markdown lines: one row an arm, best mean loss first."""
    seeds = sorted({record["seed"] for record in records})
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    for record in records:
        found[name_of(record["arm"])][record["seed"]] = record
    solved = "solved" in records[0]
    lines = ["| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | runs |"]
    lines.append("|---" * (len(seeds) + 3) + "|")

    def cell(record: dict | None) -> str:
        if record is None:
            return ""
        return (f"{record['solved']:.3f}, " if solved else "") + f"{record['nll']:.3f}"

    for arm, runs in sorted(found.items(), key=lambda item: mean(r["nll"] for r in item[1].values())):
        every = list(runs.values())
        whole = (
            f"{mean(r['solved'] for r in every):.3f}, " if solved else ""
        ) + f"{mean(r['nll'] for r in every):.3f}"
        lines.append(f"| {arm} | " + " | ".join(cell(runs.get(s)) for s in seeds) + f" | {whole} | {len(every)} |")
    return lines


def main() -> None:
    """Group the records and write the page."""
    records = [json.loads(line) for line in (HERE / "records.jsonl").read_text().splitlines()]
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["steps"], record["body"], record["objective"]].append(record)
    lines = ["# Mask rates: fixed densities and rules that adapt", ""]
    lines += ["Share of puzzles solved (where there are puzzles) and ELBO in nats per token at the last step.", ""]
    for (task, steps, body, objective), group in sorted(groups.items()):
        lines += [f"## {task}, {steps} steps, {body}, {objective}", "", *table(group), ""]
    (HERE / "summary.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

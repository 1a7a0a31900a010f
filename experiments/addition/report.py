"""Write summary.md from records.jsonl: right answers by arm, decoding policy and carry chain.

python -m experiments.addition.report
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from experiments.common import grouped, paired, read, table

HERE = Path(__file__).parent
CONTROL = "standard"


def main() -> None:
    """Read the records, write the page."""
    records = read(HERE / "records.jsonl")
    lines = ["# Five-digit addition", ""]
    for steps in sorted({record["steps"] for record in records}):
        runs = grouped(record for record in records if record["steps"] == steps)
        some = next(iter(runs[CONTROL].values()))
        strata, policies = sorted(some["policies"]["confidence"]["strata"]), list(some["policies"])
        seeds = len(runs[CONTROL])
        lines += [
            f"## {steps} steps, {seeds} seeds: right answers in %, mean over seeds, {some['pairs']} unseen pairs",
            "",
            "Each length of the longest carry chain, 0 to 5, is equally often. In brackets: arm less standard, "
            "points with 95% interval, paired by seed.",
            "",
        ]
        rows = []
        for arm, of_seed in runs.items():
            both = sorted(of_seed.keys() & runs[CONTROL].keys())
            for policy in policies:
                found = {seed: of_seed[seed]["policies"][policy] for seed in of_seed}
                control = {seed: runs[CONTROL][seed]["policies"][policy] for seed in both}
                cells = [f"{100 * mean(f['strata'][s] for f in found.values()):.1f}" for s in strata]
                against = paired([found[seed]["solved"] - control[seed]["solved"] for seed in both])
                tail = paired([found[s]["strata"][strata[-1]] - control[s]["strata"][strata[-1]] for s in both])
                everything = f"{100 * mean(f['solved'] for f in found.values()):.1f}"
                rows.append([arm, policy, *cells, everything, *(["", ""] if arm == CONTROL else [against, tail])])
        head = [
            "arm",
            "decoding",
            *(f"chain {s}" for s in strata),
            "all",
            "all, less standard",
            "longest, less standard",
        ]
        lines += [*table(head, rows), ""]
    (HERE / "summary.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

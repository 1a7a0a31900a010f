"""Write summary.md and curves.png from records.jsonl.

python -m experiments.smollm2.report
"""

from __future__ import annotations

from pathlib import Path

from experiments.common import grouped, plot_curves, read, table

HERE = Path(__file__).parent


def main() -> None:
    """Read the records, write the page and the figure."""
    records = read(HERE / "records.jsonl")
    runs, some = grouped(records), records[0]
    points = [point["step"] for point in some["curve"]]
    rows = []
    for arm, of_seed in runs.items():
        curve = next(iter(of_seed.values()))["curve"]
        low, high = curve[-1]["interval"]
        row = [arm, *(f"{point['nats_per_token']:.3f}" for point in curve), f"{low:.3f} to {high:.3f}"]
        rows.append([*row, f"{curve[-1]['seconds']:.0f}"])
    lines = [
        "# SmolLM2-135M continued as a masked model",
        "",
        f"State of the Union addresses in SmolLM2's own tokens; negative ELBO in nats per token on held-out rows of "
        f"{some['length']} tokens, common noise, after so many steps of {some['rows']} rows. "
        "One seed. All arms train at one learning rate, which was chosen for the pretrained ones; and the addresses "
        "are public, so SmolLM2 may have read them: the start counts for more here than on text that is new to it.",
        "",
        *table(["arm", *map(str, points), "95% over rows", "seconds"], rows),
        "",
        "![learning curves](curves.png)",
    ]
    plot_curves(runs, "nats_per_token", "nats per token", HERE / "curves.png")
    (HERE / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""unmask compare: several arms trained alike."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from unmask.cli.options import about, configured, flag, named_recipe, take_option
from unmask.evaluation.speedup import Arm
from unmask.report.figures import plot_curves
from unmask.report.tables import final_table, speed_table
from unmask.runs.launch import train_side_by_side


def compare(words: list[str]) -> None:
    """Train several arms alike and compare them: unmask compare RECIPE --out DIR [--arms A B ...]."""
    recipe, words = named_recipe("compare", words)
    names, words = take_option(words, "--arms")
    names = names or ["standard", "puma"]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"--arms needs at least two different names, got {' '.join(names)}")
    arms = {name: recipe(name) for name in names}
    own = ["masking"]  # what the arms differ in
    if len({arm.objective for arm in arms.values()}) > 1:
        own.append("objective")
    config, options = configured(
        arms[names[0]],
        "compare",
        words,
        [
            ("out", about(Path, "Folder of the comparison: one folder an arm, curves.png."), ...),
            ("resume", flag("Go on with arms that were interrupted."), False),
            ("overwrite", flag("Delete the runs that --out holds."), False),
            (
                "jobs",
                about(int | None, "Arms trained at a time. None: all on a CPU, sharing its cores; one on a GPU."),
                None,
            ),
        ],
        hidden=tuple(own),
    )
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}
    out: Path = options["out"]
    runs = {name: replace(arm, **shared) for name, arm in arms.items()}
    train_side_by_side(runs, out, jobs=options["jobs"], resume=options["resume"], overwrite=options["overwrite"])
    results = [Arm.load(out / name) for name in names]
    plot_curves(results, out / "curves.png", title=f"{config.recipe}: one seed, an indication")
    console = Console()
    console.print(final_table(results), speed_table(results))
    console.print(
        "Same model, data order, steps and validation noise in each arm, trained side by side. One seed: an "
        "indication, not a proof. "
        f"Targets are reached to within {config.training.evaluate_every or config.training.steps} steps."
    )
    print(f"Curves: {out / 'curves.png'}")

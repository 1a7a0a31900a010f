"""unmask compare: several arms trained alike, as a study."""

from __future__ import annotations

import shlex
from pathlib import Path

from unmask.cli.options import RUN_SIDE_BY_SIDE, about, changes_of, chosen_arms, configured, flag, opened
from unmask.cli.report import show
from unmask.config import positive_int, require
from unmask.evaluation.results import RECORDS
from unmask.runs.launch import check_asked
from unmask.runs.study import Study
from unmask.store.folder import delete_run


def compare(words: list[str]) -> None:
    """Train several arms alike and compare them: unmask compare RECIPE --out DIR [--arms A B ...] [--seeds N]."""
    command = shlex.join(["unmask", "compare", *words])
    recipe, words, settled = opened("compare", words)
    arms, words = chosen_arms(recipe, "compare", words)
    control, changes = next(iter(arms)), changes_of(arms)
    config, options = configured(
        arms[control],
        "compare",
        words,
        [
            ("out", about(Path, "Folder of the comparison: ARM/seed-S/steps-T, records, tables, curves.png."), ...),
            ("seeds", about(int, "How many, from --seed on; five make a claim, fewer an indication."), 5),
            (
                "budgets",
                about(tuple[int, ...], "Horizons in steps, each with a schedule of its own. None: --steps."),
                (),
            ),
            (
                "overwrite",
                flag("Delete these runs where --out holds them, and its records; else what is whole stays."),
                False,
            ),
            *RUN_SIDE_BY_SIDE,
        ],
        hidden=tuple(changes[control]),
        settled=settled,
    )
    positive_int("seeds", options["seeds"])
    training, budgets = config.training, options["budgets"]
    for name in ("warmup_steps", "evaluate_every") if budgets else ():
        value = getattr(training, name) or 0
        option = f"--{name.replace('_', '-')} {value}"
        require(
            value <= training.steps,
            f"each budget has the share of warm-up and evaluations that --steps {training.steps} has, and {option} "
            "is more than all of it: lower it, or raise --steps",
        )
    study = Study(
        name=config.recipe,
        base=config,
        arms=changes,
        control=control,
        seeds=tuple(range(training.seed, training.seed + options["seeds"])),
        budgets=budgets or None,
        warmup=training.warmup_steps / training.steps if budgets else None,
        evaluate=training.evaluate_every / training.steps if budgets and training.evaluate_every else None,
        checkpoint=None if training.checkpoint_every else 0.2,
        tracker=training.tracker,
    )
    out: Path = options["out"]
    check_asked(options["jobs"], options["devices"])
    for cell in study.cells():
        study.job(cell, out).config.check(
            out / cell.name, resume=not options["overwrite"], overwrite=options["overwrite"]
        )
    if options["overwrite"]:
        for cell in study.cells():
            delete_run(out / cell.name)
        (out / RECORDS).unlink(missing_ok=True)
    study.run(out, workers=options["jobs"], devices=options["devices"], command=command)
    show(out)

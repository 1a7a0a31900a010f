"""unmask advise: which arm to try first on these data, from a probe of a few minutes."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from unmask.cli.options import RUN_SIDE_BY_SIDE, about, changes_of, chosen_arms, configured, opened
from unmask.evaluation.advice import ADVICE
from unmask.evaluation.decomposition import VARIANCE, load_variance
from unmask.evaluation.results import Results, read_records
from unmask.report.advice import advice_grid, advice_lines
from unmask.report.page import write_page
from unmask.report.tables import variance_grid
from unmask.runs.advise import ProbeConfig
from unmask.runs.advise import advise as probe_arms


def advise(words: list[str]) -> None:
    """Say in minutes which arm to try first, how sure that is: unmask advise RECIPE --out DIR [--arms A B ...]."""
    command = shlex.join(["unmask", "advise", *words])
    recipe, words, settled = opened("advise", words)
    arms, words = chosen_arms(recipe, "advise", words)
    first, changes, default = next(iter(arms)), changes_of(arms), ProbeConfig()
    config, options = configured(
        arms[first],
        "advise",
        words,
        [
            ("out", about(Path, "Folder of the probe: runs, records, advice.json, report.html."), ...),
            ("minutes", about(float, "For all of it, about; the steps of the short runs follow."), default.minutes),
            ("seeds", about(int, "Runs of each arm, from --seed on."), default.seeds),
            ("probe_steps", about(int | None, "Steps of each short run. None: what fits into the minutes."), None),
            ("rows", about(int, "Held-out rows that arms are compared on, at most."), default.rows),
            *RUN_SIDE_BY_SIDE,
        ],
        hidden=(*changes[first], "evaluation"),
        settled=settled,
    )
    out: Path = options["out"]
    probe = probe_arms(
        config,
        changes,
        out,
        ProbeConfig(options["minutes"], options["seeds"], options["probe_steps"], options["rows"]),
        workers=options["jobs"],
        devices=options["devices"],
        command=command,
    )
    variances = load_variance(out / VARIANCE) if (out / VARIANCE).is_file() else None
    console = Console()
    console.print(advice_grid(probe).rich())
    if variances:
        console.print(variance_grid(variances, "gradient").rich())
    for line in advice_lines(probe, variances):
        console.print(line, highlight=False)
    page = write_page(Results.of(read_records(out, "compare")), out)
    print(f"Written: {out / ADVICE}")
    print(f"Report: {page}")

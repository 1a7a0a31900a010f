"""The records of experiments/: run what is left of its studies and measurements, and gather what is whole.

    make records                                 # everything: days on two cores
    python -m scripts.records letters --gather   # what runs/letters holds, and nothing is run

Runs stay in runs/EXPERIMENT, and a whole one is never made again. The committed line of a run that has no folder
there stays as it is. `make pages` writes tables and figures from the records.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from unmask.cli.study import folder_of, load_studies
from unmask.evaluation.results import RECORDS
from unmask.runs.study import Study

ROOT = Path(__file__).resolve().parents[1]
STUDY = "study.py"


def studies(experiment: Path, runs: Path) -> Iterator[tuple[Study, Path, Path]]:
    """Each study of an experiment's folder, with the folder of its runs and that of its records."""
    found = load_studies(experiment / STUDY)
    for study in found:
        own = study.name == experiment.name
        out = folder_of(study, found, runs / experiment.name)
        yield study, out, experiment if own else experiment / study.name


def measurements(experiment: Path) -> list[str]:
    """Modules of an experiment's folder that measure something by themselves."""
    files = sorted(file for file in experiment.glob("*.py") if "def main(" in file.read_text(encoding="utf-8"))
    return [f"{experiment.parent.name}.{experiment.name}.{file.stem}" for file in files]


def record(experiment: Path, runs: Path, gather: bool) -> list[str]:
    """Make the records of an experiment; what went wrong, one line each, once the rest is done."""
    problems = []
    for study, out, into in studies(experiment, runs) if (experiment / STUDY).is_file() else ():
        cells = study.every_cell()
        try:
            if not gather:
                study.run(out, cells, command=f"python -m scripts.records {experiment.name}")
        except (ValueError, OSError) as error:
            problems.append(f"{study.name}: {error}")
        if (into / RECORDS).is_file() or any(study.job(cell, out).is_whole for cell in cells):
            print(f"{study.name}: {len(study.gather(out, into))} of {len(cells)} runs, {into / RECORDS}", flush=True)
    for module in () if gather else measurements(experiment):
        if subprocess.run([sys.executable, "-m", module], cwd=experiment.parents[1]).returncode:
            problems.append(f"{module} failed")
    return problems


def main(words: list[str] | None = None, root: Path = ROOT) -> None:
    """Of all experiments of a repository, or of those that are named."""
    experiments, runs = root / "experiments", root / "runs"
    known = sorted(folder.name for folder in experiments.iterdir() if any(folder.glob("*.py")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(known)}")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    options = parser.parse_args(words)
    unknown = sorted(set(options.experiments) - set(known))
    if unknown:
        parser.error(f"no experiments are called {unknown}; there are {known}")
    names = options.experiments or known
    problems = [problem for name in names for problem in record(experiments / name, runs, options.gather)]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()

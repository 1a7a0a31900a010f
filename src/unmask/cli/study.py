"""unmask study: the runs of a study, as many as are left."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import tyro

from unmask.cli.report import show
from unmask.config import check_name, require
from unmask.evaluation.results import RECORDS
from unmask.runs.study import Study


@dataclass(frozen=True)
class StudyOptions:
    """Options of `unmask study`."""

    file: tyro.conf.Positional[Path]
    """Python file that defines `study = Study(...)`, or several studies under any names."""
    out: Path | None = None
    """Folder of the runs and records; by default runs/NAME. Of several studies each has one of its name in it."""
    only: tuple[str, ...] | None = None
    """These arms alone, and what they start from; of several studies those that have one."""
    seeds: tuple[int, ...] | None = None
    """These seeds alone."""
    budgets: tuple[int, ...] | None = None
    """These budgets alone."""
    screen: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the screening seeds, which arms are chosen by, instead of those that compare them."""
    jobs: int | None = None
    """Runs at a time. None: one for each GPU, or for each core."""
    devices: tuple[int, ...] | None = None
    """Numbers of the GPUs to use. None: all."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only say which runs there are, and which are whole."""


def study(words: list[str]) -> None:
    """Run a study, or what is left of it: unmask study FILE.py [--jobs N] [--out DIR] [--only ARM ...]."""
    options = tyro.cli(StudyOptions, prog="unmask study", args=words, description=study.__doc__)
    require(options.only != (), "--only names no arm")
    found = load_studies(options.file)
    problems = []
    for one, arms in _asked(found, options.only):
        out = Path("runs") / one.name if options.out is None else folder_of(one, found, options.out)
        cells = one.cells(arms, options.seeds, options.budgets, screen=options.screen)
        require(len(cells) > 0, f"the study '{one.name}' has no runs {'to screen' if options.screen else 'of these'}")
        if options.list:
            for cell in cells:
                print(f"{out / cell.name}: {'whole' if one.job(cell, out).is_whole else 'to do'}")
            continue
        try:
            one.run(
                out,
                cells,
                workers=options.jobs,
                devices=options.devices,
                command=shlex.join(["unmask", "study", *words]),
            )
        except ValueError as error:  # the other studies of the file go on
            problems.append(f"{one.name}: {error}")
        if not (out / RECORDS).is_file():  # it was refused, and nothing was ever gathered
            continue
        print(f"Records: {out / RECORDS}")
        try:
            show(out)
        except ValueError as error:  # runs may be made for other ends than to be compared
            print(f"No report: {error}")
    if problems:
        raise ValueError(" ".join(problems))


def folder_of(study: Study, studies: list[Study], out: Path) -> Path:
    """Where a study of a file has its runs, below the folder of all of that file's `studies`."""
    return out / study.name if len(studies) > 1 else out


def _asked(studies: list[Study], only: tuple[str, ...] | None) -> list[tuple[Study, tuple[str, ...] | None]]:
    """The studies that have any of the arms, each with its own of them."""
    for name in only or ():
        check_name("arm", name, {name for one in studies for name in one.arms})
    asked = [(one, None if only is None else tuple(name for name in only if name in one.arms)) for one in studies]
    return [(one, arms) for one, arms in asked if arms != ()]


def load_studies(file: Path) -> list[Study]:
    """The studies that a Python file defines, in order.

    The file is imported under the name by which it can be imported again, in other processes too: its path below the
    current folder with dots, or else its own name.

    Raises:
        ValueError: for a file that cannot be read, defines none, or two of one name.
    """
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"{file} is no Python file; a study is a file that defines `study = Study(...)`")
    module = _imported(file.resolve())
    found = [value for value in vars(module).values() if isinstance(value, Study)]
    if not found:
        raise ValueError(f"{file} defines no study: write `study = Study(...)` in it")
    names = [study.name for study in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{file} has two studies called '{twice[0]}', whose runs and records would lie in one place: give each a "
            "name of its own; of another file import the module, not its study"
        )
    return found


def _imported(file: Path) -> ModuleType:
    here = Path.cwd()
    parts = file.with_suffix("").relative_to(here).parts if file.is_relative_to(here) else ()
    root, name = (here, ".".join(parts)) if parts and all(map(str.isidentifier, parts)) else (file.parent, file.stem)
    added = str(root) not in sys.path
    if added:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != file:
            raise ValueError(
                f"{file} cannot be imported: another module is called '{name}'; give the file another name"
            )
    except BaseException as error:
        if added:  # what is refused must not hide other modules from the processes that runs start
            sys.path.remove(str(root))
        if not isinstance(error, Exception) or isinstance(error, ValueError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = str(file) if line is None else f"{file}, line {line}"
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    return module

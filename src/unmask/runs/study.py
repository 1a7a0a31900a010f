"""A study: named changes of one run, trained alike over seeds and budgets, kept so that nothing is done twice.

    study = Study(
        name="sudoku",
        base=sudoku(),
        arms={"standard": {}, "puma": {"masking": ProgressiveUnmasking(stages=8)}, "wide": {"model.width": 256}},
        control="standard",
        seeds=(1, 2, 3),
        budgets=(500, 1000),
    )
    study.run("runs/sudoku")

Every run lies in a folder of its own, OUT/ARM/seed-S/steps-T, and what is missing there is what is left to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from unmask.config import nearest, positive_int, require
from unmask.evaluation.results import RECORDS, Report, read_records
from unmask.evaluation.speedup import Role
from unmask.evaluation.steps import steps_of
from unmask.evaluation.trace import read_trace
from unmask.runs.changes import Change, changed
from unmask.runs.config import EvaluationConfig, ReadsText, RunConfig
from unmask.runs.job import PROVENANCE, Job
from unmask.runs.launch import run_jobs
from unmask.store.files import replace_text
from unmask.store.folder import CONFIG_FILE
from unmask.store.metrics import read_metrics


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared, where a change of the base alone does not say it.

    Attributes:
        change: fields by name, with dots ("training.batch_size"), and their values; or a function of the base, which
            has the run's seed and budget already.
        start: what its runs start from: an arm, whose run of the same seed is taken, or its only one, at the largest
            budget; or the folder of a run. An arm that others start from is no competitor: it has no final
            evaluations.
        seeds: instead of the study's. None of them: an arm that is only screened.
        budgets: instead of the study's.
    """

    change: Change = field(default_factory=dict)
    start: str | None = None
    seeds: tuple[int, ...] | None = None
    budgets: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm at a seed and a budget.

    Attributes:
        arm: name of the arm.
        seed: of weights, data order and masks; arms share them.
        steps: the budget, which the schedule of the learning rate is laid over.
        config: of the run, without the weights that it starts from.
        start: the cell that it starts from, or the folder of a run.
        role: what it is there for: "start" for others to start from, "screen" to choose by, "compare" to compare,
            with the final evaluations.
    """

    arm: str
    seed: int
    steps: int
    config: RunConfig
    start: Cell | str | None = None
    role: Role = "compare"

    @property
    def name(self) -> str:
        """For people, and below the study's folder."""
        return f"{self.arm}/seed-{self.seed}/steps-{self.steps}"


@dataclass(frozen=True)
class Study:
    """Runs to compare.

    Attributes:
        name: of the study.
        base: what all runs share.
        arms: changes of the base by name; {} is the base itself.
        control: the arm that the others are compared with.
        seeds: of the comparison. Runs of one seed share data order, initial weights and validation noise.
        budgets: horizons in steps. None: the base's steps.
        screening: other seeds, to choose arms by before they are compared.
        finals: evaluations by name, each made once on the last model of a run (not in screening).
        report: what the runs are compared by, and the report's title.
        warmup: share of the budget that the warm-up takes. None: the base's steps.
        evaluate: share of the budget between evaluations. None: the base's steps.
        checkpoint: share of the budget between checkpoints: how much a killed run may lose. None: the base's steps.
        tracker: where else metrics go, as `TrainingConfig.tracker`.
    """

    name: str
    base: RunConfig
    arms: Mapping[str, Arm | Change]
    control: str
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    budgets: tuple[int, ...] | None = None
    screening: tuple[int, ...] = ()
    finals: Mapping[str, EvaluationConfig | ReadsText] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    warmup: float | None = None
    evaluate: float | None = None
    checkpoint: float | None = 0.2
    tracker: str = "none"

    def __post_init__(self) -> None:
        self._check_types()
        for kind, names in (("study", [self.name]), ("arm", self.arms), ("final evaluation", self.finals)):
            for name in names:
                require(
                    bool(re.fullmatch(r"[\w.+-]+", name)) and name.strip(".") != "",
                    f"a {kind}'s name is a folder's: letters, digits and . + - _, got {name!r}",
                )
        require(self.control in self.arms, f"no arm is called '{self.control}'{nearest(self.control, self.arms)}")
        for name in self.arms:
            arm = self.arm(name)
            for seed in arm.seeds or ():
                positive_int(f"seeds of arm '{name}'", seed, least=0)
            for steps in arm.budgets or ():
                positive_int(f"budgets of arm '{name}'", steps)
        for name in ("seeds", "screening"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{name} must differ, got {values}")
            for seed in values:
                positive_int(name, seed, least=0)
        for steps in self.budgets or ():
            positive_int("budgets", steps)
        both = sorted(set(self.seeds) & set(self.screening))
        require(not both, f"seeds {both} both choose and judge: screening needs seeds of its own")
        for name in ("warmup", "evaluate", "checkpoint"):
            share = getattr(self, name)
            require(share is None or 0 <= share <= 1, f"{name} is a share of the budget in [0, 1], got {share}")
        self.cells()
        require(self.control not in self._starts, f"'{self.control}' is what others start from: no control for them")

    def _check_types(self) -> None:
        base = self.base
        require(isinstance(base, RunConfig), f"base is a run's config, as a recipe() returns it, got {base!r}")
        for name in ("seeds", "screening", "budgets"):
            values = getattr(self, name)
            require(values is None or isinstance(values, tuple | list | range), f"{name} are a tuple, got {values!r}")
        require(len(self.seeds) + len(self.screening) > 0, "a study needs seeds")
        for name in ("arms", "finals"):
            require(
                isinstance(getattr(self, name), Mapping), f"{name} are a dict by name, got {getattr(self, name)!r}"
            )
        for name, arm in self.arms.items():
            require(
                isinstance(arm, Arm | Mapping) or callable(arm),
                f"arm '{name}' is a change of the base, as {{'masking': ...}}, a function or an Arm, got {arm!r}",
            )

    def arm(self, name: str) -> Arm:
        """An arm by name; ValueError for an unknown one."""
        require(name in self.arms, f"no arm is called '{name}'{nearest(name, self.arms)}")
        arm = self.arms[name]
        return arm if isinstance(arm, Arm) else Arm(arm)

    def cells(
        self,
        arms: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        *,
        screen: bool = False,
    ) -> list[Cell]:
        """The study's runs, or those of some arms, seeds and budgets, seed after seed.

        Each comes after the run that it starts from, which is part of the list even where it was not asked for.

        Args:
            arms: names.
            seeds: of those that the study has.
            budgets: of those that the study has.
            screen: those to choose by, instead of those to compare.

        Raises:
            ValueError: for an arm, seed or budget that the study does not have.
        """
        found: dict[str, Cell] = {}

        def add(cell: Cell) -> None:
            if isinstance(cell.start, Cell):
                add(cell.start)
            found.setdefault(cell.name, cell)

        every = [
            self._cell(name, seed, steps, screen=screen)
            for name in self.arms
            for seed in self._seeds(name, screen)
            for steps in self._budgets(name)
        ]
        for what, asked, known in (
            ("arm", arms, set(self.arms)),
            ("seed", seeds, {cell.seed for cell in every}),
            ("budget", budgets, {cell.steps for cell in every}),
        ):
            for value in asked or ():
                require(value in known, f"the study '{self.name}' has no {what} {value}; it has {sorted(known)}")
        for cell in sorted(every, key=lambda cell: (cell.seed, cell.steps)):
            wanted = ((cell.arm, arms), (cell.seed, seeds), (cell.steps, budgets))
            if all(asked is None or value in asked for value, asked in wanted):
                add(cell)
        return list(found.values())

    def every_cell(self) -> list[Cell]:
        """The runs to choose by and those to compare, each once."""
        return list({cell.name: cell for screen in (True, False) for cell in self.cells(screen=screen)}.values())

    def run(
        self,
        out: str | Path,
        cells: Sequence[Cell] | None = None,
        *,
        workers: int | None = None,
        devices: Sequence[int] | None = None,
        console: Console | None = None,
        command: str = "",
    ) -> list[dict[str, Any]]:
        """Do what is left of the study, and gather the records: see `run_jobs` and `gather`.

        Args:
            out: the study's folder.
            cells: those to do; by default all that are compared.
            workers: runs at a time.
            devices: numbers of the GPUs to use.
            console: of the display.
            command: the command line that does it, kept in the records' provenance.

        Raises:
            ValueError: where a folder holds another run, records would be lost, or there is nothing to start from,
                before anything starts; or where runs failed, once the others are done.
        """
        cells = self.cells() if cells is None else cells
        self._check_start(Path(out), cells)
        failed = run_jobs(
            [replace(self.job(cell, Path(out)), command=command) for cell in cells],
            workers=workers,
            devices=devices,
            console=console,
        )
        records = self.gather(out)
        if failed:
            rest = ", the others are whole" if len(failed) < len(cells) else ""
            raise ValueError(f"{len(failed)} of {len(cells)} runs failed{rest}. {next(iter(failed.values()))}")
        return records

    def _check_start(self, out: Path, cells: Sequence[Cell]) -> None:
        """Raise ValueError for records or folders of runs that the study does not declare, or without a start."""
        declared = {(self.name, cell.arm, cell.seed, cell.steps) for cell in self.every_cell()}
        there = read_records(out) if (out / RECORDS).is_file() else []
        lost = [_place(record) for record in there if _place(record) not in declared]
        if lost:
            first = " ".join(map(str, lost[0]))
            raise ValueError(
                f"{out} holds records of {len(lost)} runs that the study '{self.name}' does not have, the first of "
                f"{first} (study, arm, seed, steps): name all arms, seeds and steps of before, or choose another "
                f"folder. Without {out / RECORDS} they are forgotten, and their folders stay"
            )
        for cell in self.every_cell():  # also those that are not asked for: their records will stand beside
            self.job(cell, out).check_folder()
        for cell in cells:
            require(
                not isinstance(cell.start, str) or Path(cell.start).exists(),
                f"arm '{cell.arm}' starts from '{cell.start}', which is neither an arm nor a run's folder"
                f"{nearest(str(cell.start), self.arms)}",
            )

    def job(self, cell: Cell, out: Path) -> Job:
        """What makes a cell below the study's folder."""
        after = out / cell.start.name if isinstance(cell.start, Cell) else None
        start = cell.start if after is None else str(after)
        config = cell.config if start is None else replace(cell.config, start=start)
        finals = self.finals if cell.role == "compare" else {}
        return Job(cell.name, config, out / cell.name, finals, after, reduce=True)

    def gather(self, out: str | Path, into: str | Path | None = None) -> list[dict[str, Any]]:
        """Read what the study's whole runs have left, and write it as records.jsonl, one line a run.

        The lines are in the order of arms, seeds and budgets, and the same however often this is called. The line of
        a declared run that is not whole here stays: it was made, and gathered, elsewhere or before.

        Args:
            out: the folder of the runs. ValueError where one of them is not what the study declares.
            into: that of the records; by default the same.
        """
        out = Path(out)
        into = out if into is None else Path(into)
        before = {} if not (into / RECORDS).is_file() else {_place(record): record for record in read_records(into)}
        order = list(self.arms)
        records = []
        for cell in sorted(self.every_cell(), key=lambda cell: (order.index(cell.arm), cell.seed, cell.steps)):
            job, kept = self.job(cell, out), before.get((self.name, cell.arm, cell.seed, cell.steps))
            job.check_folder()
            if job.is_whole:
                records.append(self._record(cell, job))
            elif kept is not None:
                records.append(kept)
        into.mkdir(parents=True, exist_ok=True)
        replace_text(into / RECORDS, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def _record(self, cell: Cell, job: Job) -> dict[str, Any]:
        saved = json.loads((job.out / CONFIG_FILE).read_text())
        curve = read_metrics(job.out, "evaluation")
        return {
            "study": self.name,
            "arm": cell.arm,
            "seed": cell.seed,
            "steps": cell.steps,
            "control": self.control,
            "role": cell.role,
            "config": saved["run"] | {"start": cell.start.name if isinstance(cell.start, Cell) else cell.start},
            "training": saved["training"],
            "parameters": saved["parameters"],
            "curve": [{key: value for key, value in point.items() if key != "kind"} for point in curve],
            "finals": {name: json.loads(job.final_path(name).read_text()) for name in job.finals},
            "provenance": json.loads((job.out / PROVENANCE).read_text()),
            "log": steps_of(job.out),
            "trace": read_trace(job.out),
        } | ({} if self.report == Report() else {"report": asdict(self.report)})

    @property
    def _starts(self) -> set[str]:
        """The arms that others start from."""
        return {start for name in self.arms if (start := self.arm(name).start) is not None and start in self.arms}

    def _seeds(self, name: str, screen: bool) -> tuple[int, ...]:
        seeds = self.arm(name).seeds
        if screen and (seeds is None or name not in self._starts):
            return self.screening
        return self.seeds if seeds is None else seeds

    def _budgets(self, name: str) -> tuple[int, ...]:
        budgets = self.arm(name).budgets
        return budgets if budgets is not None else self.budgets or (self.base.training.steps,)

    def _cell(self, name: str, seed: int, steps: int, *, screen: bool, below: tuple[str, ...] = ()) -> Cell:
        below = (*below, name)
        require(name not in below[:-1], f"arms start from one another in a circle: {' from '.join(below)}")
        start: Cell | str | None = self.arm(name).start
        if start is not None and start in self.arms:
            seeds = self._seeds(start, screen)
            require(
                seed in seeds or len(seeds) == 1,
                f"arm '{name}' cannot start from '{start}' at seed {seed}: that has seeds {seeds}",
            )
            at = seed if seed in seeds else seeds[0]
            start = self._cell(start, at, max(self._budgets(start)), screen=screen, below=below)
        role: Role = "start" if name in self._starts else "screen" if screen else "compare"
        return Cell(name, seed, steps, self._config(name, seed, steps), start, role)

    def _config(self, name: str, seed: int, steps: int) -> RunConfig:
        """The run's config: first the horizon, then the arm's change, which may look at it."""

        def share(of: float | None, otherwise: int | None) -> int | None:
            return otherwise if of is None else max(1, round(of * steps))

        training = self.base.training
        training = replace(
            training,
            steps=steps,
            seed=seed,
            warmup_steps=training.warmup_steps if self.warmup is None else round(self.warmup * steps),
            evaluate_every=share(self.evaluate, training.evaluate_every),
            checkpoint_every=share(self.checkpoint, training.checkpoint_every),
            tracker=self.tracker,
        )
        change = self.arm(name).change
        try:
            base = replace(self.base, training=training)
            config = change(base) if callable(change) else changed(base, change)
        except ValueError as error:
            raise ValueError(f"arm '{name}': {error}") from None
        require(isinstance(config, RunConfig), f"the change of arm '{name}' is to return a config, got {config!r}")
        require(
            (config.training.steps, config.training.seed) == (steps, seed),
            f"arm '{name}' changes training.steps or training.seed: those are its budgets and seeds",
        )
        return config


def _place(record: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return record["study"], record["arm"], record["seed"], record["steps"]

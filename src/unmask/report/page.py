"""report.html: a study in one file, for people, from its records alone. It needs no network and no server."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from unmask import __version__
from unmask.evaluation.advice import ADVICE, Probe
from unmask.evaluation.decomposition import VARIANCE, load_variance
from unmask.evaluation.results import RECORDS, WEIGHTS, Results
from unmask.evaluation.speedup import MEASURES, Run
from unmask.report.advice import advice_grid, advice_lines
from unmask.report.costs import costs
from unmask.report.curves import COSTS, costs_of, curve_figure, measures_of, ranking_figure, ratio_figure
from unmask.report.grid import Grid
from unmask.report.locality import locality_figure
from unmask.report.steps import density_figure, norm_figure, rate_figure
from unmask.report.study import (
    Finding,
    caution,
    commands_of,
    ends,
    findings,
    matched,
    numbers,
    protocol,
    seeds_of,
    spread,
    title_of,
)
from unmask.report.style import PALETTE, arm_styles, styled
from unmask.report.svg import inline, png_of, svg_of
from unmask.report.variance import variance_figure

PAGE, FIGURES = "report.html", "figures"


@dataclass(frozen=True)
class Shown:
    """A figure on the page; `against` is the cost that it is drawn against, where that can be switched."""

    title: str
    svg: Markup
    against: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading. What it has not is left out."""

    key: str
    title: str
    lead: str = ""
    answer: str = ""
    findings: Sequence[Finding] = ()
    lines: Sequence[str] = ()
    costs: dict[str, str] = field(default_factory=dict)
    figures: Sequence[Shown] = ()
    grids: Sequence[Grid] = ()
    replay: dict[str, Any] | None = None
    commands: Sequence[str] = ()
    details: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below the heading."""
        told = self.answer, self.findings, self.lines, self.figures, self.grids
        return not any((*told, self.replay, self.commands, self.details))


def write_page(results: Results, out: Path, screened: Results | None = None, title: str = "") -> Path:
    """Write report.html into a study's folder, and each of its figures below figures/; return the page's path.

    Args:
        results: the runs that are compared.
        out: the folder.
        screened: the runs that arms were chosen by.
        title: of the page; by default as `title_of`.
    """
    page = _Page(results, out)
    sections = [*page.sections(), *_screening(screened)]
    absent = [how for section, how in sections if section.is_empty and how]
    shown = [section for section, _ in sections if not section.is_empty]
    if absent:
        shown.append(Section("absent", "Not in these records", lines=absent))
    shown.append(page.provenance())
    place = files("unmask.report") / "template"
    css, script = (Markup((place / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader("unmask.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        title=title or title_of(results),
        lead=_lead(results),
        palette=PALETTE,
        styles=arm_styles(results.arms, results.control),
        sections=shown,
        css=css,
        script=script,
        version=__version__,
        records=RECORDS,
    )
    (out / PAGE).write_text(html, encoding="utf-8")
    return out / PAGE


class _Page:
    """The sections of a study's page; figures are written as they are drawn."""

    def __init__(self, results: Results, out: Path) -> None:
        self.results, self.out = results, out
        self.budgets = results.budgets(results.control)
        self.largest = self.budgets[-1]
        (out / FIGURES).mkdir(parents=True, exist_ok=True)

    def sections(self) -> list[tuple[Section, str]]:
        """Every section, with the line that says how to get its records."""
        results = self.results
        again = (
            "the records do not have it; where the runs' folders are still there, the command that made the study "
            "adds it and trains nothing again"
        )
        one = shlex.quote(str(self._folder(results.of_seed(results.control, self.largest).values())))
        return [
            (self._advice(), ""),
            (self._verdict(), ""),
            (self._curves(), ""),
            (self._cost(), ""),
            (
                Section("matched", "Matched horizons", grids=matched(results)),
                "Matched horizons: the control has one budget; give several, as in --budgets 500 1000.",
            ),
            (self._ends(), ""),
            (self._finals(), ""),
            (self._rates(), f"Loss by mask rate: {again}."),
            (self._variance(), f"Variance from masks, rates and rows (A, B, C): unmask variance {one}"),
            (self._densities(), "Learnt mask rates: no arm learns them; an arm with P-POTS does."),
            (self._norms(), f"Gradient noise: {again} (runs of at least 20 logged steps)."),
            (self._replay(), "Replay of an unseen row: the runs have left no trace; runs made now do."),
            (Section("spread", "From run to run", grids=spread(results)), ""),
        ]

    def _advice(self) -> Section:
        """Of a probe alone: see `unmask.runs.advise`."""
        if not (self.out / ADVICE).is_file():
            return Section("advice", "Which arm first")
        probe, path = Probe.load(self.out), self.out / VARIANCE
        lines = advice_lines(probe, load_variance(path) if path.is_file() else None)
        found = [
            (locality_figure({"": probe.locality}, against), f"locality-{i}", f"Where the loss is, by {against}")
            for i, against in enumerate(curve.against for curve in probe.locality)
        ]
        return Section(
            "advice",
            "Which arm first",
            answer=lines[0],
            lines=lines[1:],
            figures=self._drawn(found),
            grids=[advice_grid(probe)],
        )

    def _verdict(self) -> Section:
        found = sorted(findings(self.results), key=lambda finding: -finding.steps)
        return Section(
            "verdict",
            "Verdict",
            f"Against {self.results.control}.",
            findings=found,
            lines=[*([] if found else ["There is no arm to compare with the control."]), caution(self.results)],
        )

    def _curves(self) -> Section:
        shown, kinds = [], costs_of(self.results, self.largest)
        for steps in reversed(self.budgets):
            for measure in measures_of(self.results, steps):
                for of in costs_of(self.results, steps):
                    title = f"{measure.heading}, {steps} steps"
                    figure = curve_figure(self.results, measure, of, steps)
                    name = f"curve-{len(shown)}-{_plain(measure.key)}-{of}-{steps}"
                    told = f"against {COSTS[of]}; the numbers are in the tables below"
                    shown.append(self._shown(figure, name, title, told, of if len(kinds) > 1 else ""))
        lead = (
            "Lines are means over seeds. Bands are 95% intervals: of that mean, or with one seed of its evaluations; "
            "of two seeds both are thin lines. Dotted lines are the levels of the next section."
        )
        return Section(
            "curves",
            "Learning curves",
            lead,
            costs={of: COSTS[of] for of in kinds} if len(kinds) > 1 else {},
            figures=shown,
        )

    def _cost(self) -> Section:
        shown = []
        for steps in reversed(self.budgets):
            if (figure := ratio_figure(self.results, steps)) is not None:
                title = f"Fewer steps to each target, {steps} steps"
                told = f"steps of {self.results.control} over each arm's; the numbers are in the table below"
                shown.append(self._shown(figure, f"ratios-{steps}", title, told))
        control = self.results.control
        lead = f"Right of 1x an arm needed fewer steps than {control}; lines are 95% intervals." if shown else ""
        return Section("targets", "Time to a target", lead, figures=shown, grids=costs(self.results))

    def _finals(self) -> Section:
        results = self.results
        names = dict.fromkeys(name for run in results.runs for name in run.finals)
        grids = [
            grid
            for name in names
            for grid in (*ends(results, name), *matched(results, name), *numbers(results, name))
        ]
        figures = [shown for name in names for shown in self._ranked(name)]
        return Section("finals", "Evaluated once, on the final models", figures=figures, grids=grids)

    def _ends(self) -> Section:
        return Section("ends", "At the end of training", figures=self._ranked(None), grids=ends(self.results))

    def _ranked(self, final: str | None) -> list[Shown]:
        """The arms in order, at each budget."""
        where, shown = "" if final is None else f" of {final}", []
        for steps in reversed(self.budgets):
            if (figure := ranking_figure(self.results, steps, final)) is not None:
                title = f"The arms{where} in order, {steps} steps"
                told = f"less {self.results.control}'s, with 95% intervals; the numbers are in the table below"
                shown.append(self._shown(figure, f"ranking-{_plain(final or 'last')}-{steps}", title, told))
        return shown

    def _rates(self) -> Section:
        lead = "Over the second half of training, on what each arm trained on; bands are the range over seeds."
        titles = {"loss": "Loss by mask rate", "gradient": "Gradient by mask rate"}
        found = ((rate_figure(self.results, of, self.largest), f"rates-{of}", titles[of]) for of in titles)
        return Section("rates", "Loss by mask rate", lead, figures=self._drawn(found))

    def _variance(self) -> Section:
        shown = []
        folders = [self.out, *(self._folder([run]) for run in self.results.runs)]
        for number, folder in enumerate(folders):
            path = folder / VARIANCE
            if path.is_file():
                arms, where = load_variance(path), "" if folder == self.out else f", {folder.relative_to(self.out)}"
                for of in ("loss", "gradient"):
                    title = f"Variance of the {of}{where}"
                    told = "stacked: A from masks, B from rates, C from rows"
                    shown.append(self._shown(variance_figure(arms, of), f"variance-{number}-{of}", title, told))
        lead = "Of a batch, at equal forwards, from masks (A), mask rates (B) and rows (C)."
        return Section("variance", "Variance", lead, figures=shown)

    def _densities(self) -> Section:
        found = (
            (density_figure(run), f"density-{number}", f"{run.arm}, seed {run.seed}")
            for number, run in enumerate(self._first_runs())
        )
        lead = "The mask rates that an arm has learnt to train at: the palest line after the first fit."
        return Section("densities", "Learnt mask rates", lead, figures=self._drawn(found))

    def _norms(self) -> Section:
        figure = norm_figure(self.results, self.largest)
        lead = "Norm of a step's gradient before clipping: median and the middle 80% of each tenth of training."
        return Section("noise", "Gradient noise", lead, figures=self._drawn([(figure, "noise", "Gradient norm")]))

    def _replay(self) -> Section:
        found = []
        for arm in self.results.arms:
            runs = [run for run in self.results.runs if run.arm == arm and run.record.get("trace")]
            if runs:
                run = min(runs, key=lambda run: (-run.steps, run.seed))
                found.append({"name": arm, **run.record["trace"], "final": _final(run.record["trace"])})
        if not found:
            return Section("replay", "Replay")
        exact, truths = all(trace.get("exact", False) for trace in found), {tuple(trace["truth"]) for trace in found}
        told = " Wrong ones are underlined." if exact else ""
        lead = f"One row that no arm was trained on, unmasked by the final models. What was given is bold.{told}"
        replay = {
            "arms": found,
            "steps": max(len(trace["steps"]) for trace in found),
            "truth": "" if exact or len(truths) > 1 else "".join(truths.pop()),
        }
        return Section("replay", "Replay", lead, replay=replay)

    def provenance(self) -> Section:
        """What is needed to make it all again."""
        rows, details = [], {}
        for run in self.results.runs:
            config = {"run": run.record.get("config", {}), "training": run.record.get("training", {})}
            config["training"] = {k: v for k, v in config["training"].items() if k not in ("seed", "steps")}
            text = json.dumps(config, indent=2)
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
            weights = run.record.get("provenance", {}).get(WEIGHTS, "")
            rows.append([run.arm, str(run.steps), str(run.seed), digest, weights])
            details.setdefault(f"Config of {run.arm}", text)
        measure = self.results.measure
        words = ["unmask", "report", str(self.out), "--measure", measure.key]
        words += ["--rises"] if measure.rises and measure not in MEASURES else []
        commands = [*commands_of(self.results), f"{shlex.join(words)}  # this page"]
        commands += [
            f"unmask train {shlex.quote(str(self._folder([run]) / 'config.json'))} --out again"
            for run in self._first_runs()
            if (self._folder([run]) / "config.json").is_file()
        ]
        note = "SHA-256, the first digits; that of a config leaves out seed and steps."
        configs = Grid("Runs", ["arm", "steps", "seed", "config hash", "weights"], rows, note)
        return Section(
            "protocol",
            "Protocol and provenance",
            grids=[*protocol(self.results), configs],
            commands=commands,
            details=details,
        )

    def _first_runs(self) -> list[Run]:
        """Of each arm the first run at the largest budget, in the order of the arms."""
        found = (self.results.of_seed(arm, self.largest) for arm in self.results.arms)
        return [next(iter(runs.values())) for runs in found if runs]

    def _folder(self, runs: Iterable[Run]) -> Path:
        """Where the first of the runs lies, if the study's folder has its runs."""
        run = next(iter(runs))
        return self.out / run.arm / f"seed-{run.seed}" / f"steps-{run.steps}"

    def _drawn(self, figures: Iterable[tuple[Figure | None, str, str]]) -> list[Shown]:
        return [self._shown(figure, name, title) for figure, name, title in figures if figure is not None]

    @styled
    def _shown(self, figure: Figure, name: str, title: str, told: str = "", against: str = "") -> Shown:
        """Write a figure beside the page, and give it to the page."""
        svg = svg_of(figure, name)
        (self.out / FIGURES / f"{name}.svg").write_text(svg, encoding="utf-8")
        figure.set_layout_engine("none")  # it is laid out already
        (self.out / FIGURES / f"{name}.png").write_bytes(png_of(figure))
        return Shown(title, inline(svg, f"figure-{name}", title, told or title), against)


def _screening(screened: Results | None) -> list[tuple[Section, str]]:
    grids = [] if screened is None else [*ends(screened), *costs(screened)]
    return [(Section("screening", "Screening: other seeds, to choose by", grids=grids), "")]


def _lead(results: Results) -> str:
    count = len(results.arms)
    return (
        f"{count} arm{'s' * (count > 1)} ({', '.join(results.arms)}), {seeds_of(results)}, "
        f"budgets of {', '.join(map(str, results.budgets()))} steps, compared by: {results.measure.label}."
    )


def _final(trace: dict[str, Any]) -> list[str]:
    """What stands at each position after the last step."""
    words = list(trace["start"])
    for step in trace["steps"]:
        for position, word in step:
            words[position] = word
    return ["" if word is None else word for word in words]


def _plain(text: str) -> str:
    """Letters and digits of a name, for a file's."""
    return "".join(sign if sign.isalnum() else "-" for sign in text)

"""unmask evaluate: what trained models can do, as records with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress

from unmask import __version__
from unmask.cli.options import REGISTRY, chosen_device, take_option
from unmask.config import positive_int, require, to_json
from unmask.data.streamed import at_hand
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.curve import Curve
from unmask.evaluation.estimate import Estimate
from unmask.evaluation.generative import generative_perplexity, open_reader, text_length
from unmask.evaluation.hashes import data_hash, weights_hash
from unmask.evaluation.likelihood import LikelihoodConfig, RowNats, characters, likelihood
from unmask.evaluation.locality import LocalityConfig, locality
from unmask.evaluation.records import Protocol, Record, save_records
from unmask.evaluation.tasks.base import Task
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.recipes import RunConfig
from unmask.report.locality import plot_locality
from unmask.report.tables import records_grid
from unmask.runs.config import Answering, Tokenized, load_model, load_run, tokenizer_of
from unmask.sampling import Decoding
from unmask.store.checkpoint import saved
from unmask.training.console import standard_error

What = Literal["likelihood", "tasks", "locality", "generation"]
USAGE = """usage: unmask evaluate RUN [RUN ...] [options]

RUN is a run's folder (its newest checkpoint) or one of its checkpoints; several are compared on the same rows.
--module NAME ... imports your own classes that a run names: a module or a .py file, whose code is run.

`unmask evaluate RUN --help` explains every option."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `unmask evaluate`; the fields of the first run's data config join them as --data.*."""

    what: tuple[What, ...] = ("likelihood",)
    """What to measure."""
    split: Literal["held_out", "train"] = "held_out"
    """Rows of the data: those kept from training, or the others."""
    rows: int = 256
    """At most so many rows, the first ones."""
    samples: int = 8
    """Forwards of each row."""
    seed: int = 0
    """Of rates, masks, orders and samples; common to all models."""
    batch_size: int = 64
    """Forwards at a time; changes no number."""
    device: str = "auto"
    """Where the models run: cpu, cuda, cuda:1, ... auto: the GPU where there is one."""
    reference: str | None = None
    """locality: what the irreducible loss is taken from: a number of nats per token (0 where the given tokens
    determine the others), or a run whose model bounds it."""
    tokenizer: Path | None = None
    """Folder of the models' tokenizer: for bits per character, and for generation. None: the one that the first run
    saved, if its data are text."""
    judge: str | None = None
    """generation: folder of a causal Hugging Face model with its tokenizer, or package:NAME."""
    texts: int = 64
    """generation: how many texts."""
    length: int | None = None
    """generation: tokens of each text. None: 128, or less where the model reads less or the rows are
    shorter."""
    decoding: Decoding = field(default_factory=lambda: Decoding(policy="random", temperature=1.0))
    """generation: how texts are decoded."""

    def __post_init__(self) -> None:
        require(len(self.what) > 0, f"--what names nothing to measure: {', '.join(MEASURES)}")
        for name in ("rows", "samples", "batch_size"):
            positive_int(name, getattr(self, name))
        positive_int("texts", self.texts, least=2)  # an interval needs two
        if self.length is not None:
            positive_int("length", self.length)
        if "generation" in self.what:
            require(self.judge is not None, "generation needs --judge FOLDER (a causal model)")


@dataclass(frozen=True)
class Subject:
    """A checkpoint to measure.

    Attributes:
        name: in tables.
        run: the run's folder.
        checkpoint: the checkpoint's folder.
        config: the run's.
        single: it was named itself, rather than its run.
        modules: whose classes the run may name besides those of unmask.
    """

    name: str
    run: Path
    checkpoint: Path
    config: RunConfig
    single: bool
    modules: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, modules: tuple[str, ...] = ()) -> Subject:
        """Read a run's folder or a checkpoint's."""
        config, checkpoint = load_run(folder, modules)
        run, single = checkpoint.parent.parent, checkpoint.resolve() == folder.resolve()
        name = run.resolve().name
        return cls(f"{name}, {checkpoint.name}" if single else name, run, checkpoint, config, single, modules)

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoint named, or all those of the run, in order of their steps."""
        return [self.checkpoint] if self.single else saved(self.checkpoint.parent)

    def path(self, what: str, suffix: str = ".json") -> Path:
        """Where its records or plots go."""
        return self.run / "evaluation" / (f"{what}-{self.checkpoint.name}{suffix}" if self.single else what + suffix)


def evaluate(words: list[str]) -> None:
    """Measure trained models, with intervals: unmask evaluate RUN [RUN ...] --what likelihood tasks [options]."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if count == 0:
        print(USAGE)
        raise SystemExit(0 if {"-h", "--help"} & set(words) else 2)
    modules, rest = take_option(words[count:], "--module")
    subjects = _told_apart([Subject.load(Path(word), tuple(modules)) for word in words[:count]])
    data = subjects[0].config.data
    kind = make_dataclass(
        "Options", [("data", type(data), field(default=data))], bases=(EvaluateOptions,), frozen=True
    )
    options: Any = tyro.cli(kind, prog="unmask evaluate", args=rest, description=evaluate.__doc__, registry=REGISTRY)
    chosen_device(options.device)
    judged = any(isinstance(subject.config.evaluation, Answering) for subject in subjects)
    if len(subjects) > 1 and (judged or set(options.what) != {"tasks"}):  # a task brings rows of its own
        _check_tokenizers(subjects)
    if options.split == "held_out" and isinstance(options.data, Tokenized):
        options.data.check()
    dataset = options.data.held_out() if options.split == "held_out" else at_hand(options.data.load(), options.rows)
    dataset = dataset.select(range(min(options.rows, len(dataset))))
    _check(subjects, dataset, options)
    console = Console()
    with Progress(console=standard_error()) as progress:
        found = {what: MEASURES[what](subjects, dataset, options, progress) for what in options.what}
    for what, records in found.items():
        console.print(records_grid(records, what).rich())
    places = sorted({str(subject.run / "evaluation") for subject in subjects})
    print(f"Records and plots: {', '.join(places)}")


def _told_apart(subjects: list[Subject]) -> list[Subject]:
    """The subjects named by as much of their paths as tells them apart: all runs of a study end in steps-T."""
    parts = [subject.run.resolve().parts for subject in subjects]
    for depth in range(1, 1 + max(map(len, parts))):
        names = [
            "/".join(place[-depth:]) + (f", {subject.checkpoint.name}" if subject.single else "")
            for subject, place in zip(subjects, parts, strict=True)
        ]
        if len(set(names)) == len(names):
            return [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]
    raise ValueError(f"the runs need different names, got {', '.join(subject.name for subject in subjects)}")


def _check(subjects: list[Subject], dataset: Dataset, options: Any) -> None:
    """Raise ValueError for what one of the measures cannot do, before the first of them takes its time."""
    for subject in subjects if "tasks" in options.what else ():
        judged = isinstance(subject.config.evaluation, Task | Answering)
        require(judged, f"the run in {subject.run} has no task with right and wrong answers")
    if {"likelihood", "locality"} & set(options.what):
        require(len(dataset) >= 2, f"an interval over rows needs at least 2 rows, got {len(dataset)}")
    if "locality" in options.what and isinstance(_number(options.reference), str):
        Subject.load(Path(options.reference))
    if "generation" in options.what:
        told = "generation needs --tokenizer FOLDER (the models' own): the run's data are no text"
        require(_tokenizer(options, subjects) is not None, told)
        open_reader(options.judge)


def _likelihood(
    subjects: list[Subject], dataset: Dataset, options: EvaluateOptions, progress: Progress
) -> list[Record]:
    """Negative ELBO, and with several models the paired differences from the first."""
    config = LikelihoodConfig(samples=options.samples, seed=options.seed)
    tokenizer = _tokenizer(options, subjects)
    measured: list[tuple[Subject, RowNats, Protocol]] = []
    for subject, model in _models(subjects, options, dataset):
        advance = _bar(progress, f"likelihood {subject.name}", len(dataset))
        nats = likelihood(model, dataset, config, batch_size=options.batch_size, progress=advance)
        measured.append((subject, nats, _protocol(config, data_hash(dataset), model, tokenizer)))
    every = []
    for subject, nats, protocol in measured:
        numbers = {
            "negative ELBO, nats per token": nats.nats_per_token,
            "negative ELBO, bits per token": nats.bits_per_token,
            "perplexity, upper bound": nats.perplexity,
        }
        if tokenizer is not None:
            for unit in ("character", "byte"):
                numbers[f"negative ELBO, bits per {unit}"] = nats.bits_per(characters(dataset, tokenizer, f"{unit}s"))
        if nats is not measured[0][1]:
            numbers[f"nats per token less those of {measured[0][0].name}"] = nats.difference(measured[0][1])
        records = [Record.of(name, subject.name, e, len(dataset), protocol) for name, e in numbers.items()]
        save_records(subject.path("likelihood"), records)
        every += records
    return every


def _tasks(subjects: list[Subject], dataset: Dataset, options: EvaluateOptions, progress: Progress) -> list[Record]:
    """The run's own task, over all and per stratum. It brings its rows, or answers the prompts of the data set."""
    every, tokenizer = [], tokenizer_of(subjects[0].checkpoint)
    for subject, model in _models(subjects, options):
        task = subject.config.evaluation
        rows = task.load(task.final_puzzles) if isinstance(task, Task) else dataset
        advance = _bar(progress, f"tasks {subject.name}", 1)
        if isinstance(task, Answering):
            assert tokenizer is not None  # what is judged is text
            model.check_rows(rows)
            results = task.answered(model, rows, tokenizer)
        else:
            assert isinstance(task, Task)
            results = task.evaluate(model, rows)
        advance(1)
        protocol = _protocol(task, data_hash(rows), model)
        records = []
        for name, share in {"all": results, **results["strata"]}.items():
            estimate = Estimate(share["solved"], *share["interval"])
            records.append(Record.of(f"solved, {name}", subject.name, estimate, share["puzzles"], protocol))
        save_records(subject.path("tasks"), records)
        every += records
    return every


def _locality(
    subjects: list[Subject], dataset: Dataset, options: EvaluateOptions, progress: Progress
) -> list[Record]:
    """The loss by rate, distance and radius, for every checkpoint of a run; the table shows the newest's."""
    config = LocalityConfig(LikelihoodConfig(samples=options.samples, seed=options.seed))
    reference = _reference(options)
    newest = []
    for subject in subjects:
        every, records, curves = [], [], {}
        advance = _bar(progress, f"locality {subject.name}", len(dataset) * len(subject.checkpoints))
        for checkpoint in subject.checkpoints:
            one = replace(subject, checkpoint=checkpoint)
            ((_, model),) = _models([one], options, dataset)
            label = subject.name if checkpoint == subject.checkpoint else f"{subject.name}, {checkpoint.name}"
            found = locality(
                model, dataset, config, reference=reference, batch_size=options.batch_size, progress=advance
            )
            curves[checkpoint.name] = found
            records = _points(found, label, _protocol(config, data_hash(dataset), model))
            every += records
        save_records(subject.path("locality"), every)
        plot_locality(curves, subject.path("locality", ".png"), title=subject.name)
        newest += [record for record in records if record.name.startswith("loss")]
    return newest


def _generation(
    subjects: list[Subject], dataset: Dataset, options: EvaluateOptions, progress: Progress
) -> list[Record]:
    """Generative perplexity with its company; all figures and the texts go to generation-texts.json."""
    tokenizer, every = _tokenizer(options, subjects), []
    assert tokenizer is not None
    assert options.judge is not None
    for subject, model in _models(subjects, options):
        advance = _bar(progress, f"generation {subject.name}", options.texts)
        found, texts = generative_perplexity(
            model,
            tokenizer,
            options.judge,
            texts=options.texts,
            length=options.length or text_length(model, tokenizer, getattr(subject.config.data, "length", None)),
            decoding=options.decoding,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=advance,
        )
        settings = {"decoding": to_json(options.decoding), "seed": options.seed, "length": found.length}
        protocol = _protocol(settings | {"steps": found.steps, "judge": found.judge}, "none", model, tokenizer)
        numbers = {"generative perplexity": found.perplexity, "unigram entropy, nats": found.unigram_entropy}
        for n, share in enumerate(found.distinct, 1):  # of all texts together: no interval
            numbers[f"distinct {n}-grams"] = Estimate(share, share, share)
        records = [Record.of(name, subject.name, e, found.texts, protocol) for name, e in numbers.items()]
        save_records(subject.path("generation"), records)
        whole = {"figures": asdict(found), "texts": texts}
        subject.path("generation-texts").write_text(json.dumps(whole, indent=2) + "\n")
        every += records
    return every


MEASURES: dict[str, Callable[[list[Subject], Dataset, EvaluateOptions, Progress], list[Record]]] = {
    "likelihood": _likelihood,
    "tasks": _tasks,
    "locality": _locality,
    "generation": _generation,
}


def _models(
    subjects: list[Subject], options: EvaluateOptions, dataset: Dataset | None = None
) -> list[tuple[Subject, MaskedDiffusionLM]]:
    """The models of the subjects, on their device; rows that one of them cannot read are refused."""
    found, device = [], chosen_device(options.device)
    for subject in subjects:
        model = load_model(subject.checkpoint, subject.modules).to(device)
        if dataset is not None:
            model.check_rows(dataset)
        found.append((subject, model))
    return found


def _tokenizer(options: Any, subjects: list[Subject]) -> TextTokenizer | None:
    """The tokenizer that was named, or that of the data."""
    if options.tokenizer is not None:
        return TextTokenizer.load(options.tokenizer)
    if isinstance(options.data, Tokenized):
        return options.data.tokenizer()
    return tokenizer_of(subjects[0].checkpoint)


def _reference(options: EvaluateOptions) -> MaskedDiffusionLM | float | None:
    found = _number(options.reference)
    return _models([Subject.load(Path(found))], options)[0][1] if isinstance(found, str) else found


def _number(reference: str | None) -> float | str | None:
    """A reference as the number that it is, or as the run's folder; ValueError for one that is not finite."""
    try:
        found = None if reference is None else float(reference)
    except ValueError:
        return reference
    require(found is None or math.isfinite(found), f"--reference is a finite number or a run, got {reference}")
    return found


def _check_tokenizers(subjects: list[Subject]) -> None:
    """Raise ValueError for models that do not read the same tokens: figures per token would not compare."""
    found = {subject.name: tokenizer_of(subject.checkpoint) for subject in subjects}
    kinds = {name: tokenizer.fingerprint for name, tokenizer in found.items() if tokenizer is not None}
    require(
        len(set(kinds.values())) < 2,
        f"{', '.join(kinds)} have different tokenizers: evaluate them one by one, and compare bits per character",
    )


def _points(curves: tuple[Curve, ...], label: str, protocol: Protocol) -> list[Record]:
    records = []
    for curve in curves:
        for point in curve.points:
            parts = {"loss": point.loss, "irreducible": point.floor, "learnable": point.learnable}
            for part, estimate in parts.items():
                if estimate is not None:
                    name = f"{part}, {curve.against} {point.label}"
                    records.append(Record.of(name, label, estimate, point.rows, protocol))
    return records


def _protocol(settings: Any, data: str, model: MaskedDiffusionLM, tokenizer: TextTokenizer | None = None) -> Protocol:
    fingerprint = None if tokenizer is None else tokenizer.fingerprint
    return Protocol(to_json(settings), data, fingerprint, weights_hash(model), __version__)


def _bar(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(name, total=total)
    return lambda done: progress.advance(task, done)

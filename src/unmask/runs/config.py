"""RunConfig: all that makes a run, in one value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from unmask.config import from_json, ours, require, to_json
from unmask.data.streamed import at_hand
from unmask.data.tokenizers import TOKENIZER_FILE, TextTokenizer
from unmask.distributed import place_among_ranks
from unmask.evaluation.trace import Example, trace_of
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import other_sizes
from unmask.models.lora import WEIGHTS_FILE as ADAPTERS_FILE
from unmask.models.pretrained import load_adapted
from unmask.objectives import Objective
from unmask.parts import NoEvaluation, RowsOnDisk, SavedModel, TextModel
from unmask.parts.places import found_from
from unmask.processes import Masking
from unmask.processes.progressive import refuse_importance
from unmask.runs.prepare import check_guide, looked_up, warn_of_shared, with_guide
from unmask.store import checkpoint
from unmask.store.folder import CONFIG_FILE, check_folder, read_config
from unmask.training import Trainer, TrainingConfig
from unmask.training.launched import check_launch
from unmask.training.ranks import connect
from unmask.training.state import read_weights
from unmask.training.trainer import Evaluation


class DataConfig(Protocol):
    """Names a data set."""

    def load(self) -> Dataset | IterableDataset:
        """Rows with the columns `tokens` and `maskable`; they may be streamed."""
        ...

    def held_out(self) -> Dataset:
        """A few rows more that are not among those of `load`, for what measures the model during training."""
        ...


@runtime_checkable
class Findable(Protocol):
    """A part of a run that names files."""

    def found_from(self, folder: Path) -> Any:
        """The same part, with what relative paths name looked for in a folder too: where the run was started."""
        ...


@runtime_checkable
class Tokenized(DataConfig, Protocol):
    """A data set that is text."""

    def tokenizer(self) -> TextTokenizer:
        """What makes its tokens."""
        ...

    def with_tokenizer(self, folder: Path) -> DataConfig:
        """The same texts by a tokenizer that a run has saved."""
        ...

    def check(self) -> None:
        """Raise ValueError for texts of which none can be held out, before any is tokenized."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """An evaluation that has a row to watch."""

    def example(self, held_out: Dataset) -> Example:
        """An unseen row, and how it is decoded."""
        ...


class ModelConfig(Protocol):
    """Names a model."""

    def build(self) -> MaskedDiffusionLM:
        """The model, with weights drawn from torch's generator or loaded."""
        ...


@runtime_checkable
class ReadsText(Protocol):
    """An evaluation that reads what the model writes: it is started by this instead of `start`."""

    def start_text(self, held_out: Dataset, tokenizer: TextTokenizer) -> Evaluation:
        """Return evaluate(model, last)."""
        ...


@runtime_checkable
class Answering(Protocol):
    """An evaluation that can tell right answers to the prompts of any rows from wrong ones."""

    def answered(self, model: MaskedDiffusionLM, dataset: Dataset, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Give "solved", its "interval" and "puzzles", and the same three of each of the "strata"."""
        ...


class EvaluationConfig(Protocol):
    """Names what is evaluated during training."""

    def start(self, held_out: Dataset) -> Evaluation:
        """Load what it needs besides the run's held-out rows; return evaluate(model, last)."""
        ...


@dataclass(frozen=True)
class RunConfig:
    """A run: data, model, masking, objective, training and evaluation.

    Attributes:
        recipe: name of the recipe that it comes from.
        data: rows to train on.
        model: the denoiser.
        masking: forward process.
        objective: weights of the masked tokens' losses.
        training: settings of the loop.
        evaluation: what is evaluated along the way.
        start: folder of a run of the same model, or one of its checkpoints, whose weights this one starts from.
    """

    recipe: str
    data: DataConfig
    model: ModelConfig
    masking: Masking
    objective: Objective
    training: TrainingConfig
    evaluation: EvaluationConfig | ReadsText
    start: str | None = None

    def __post_init__(self) -> None:
        trained, evaluated = (getattr(part, "form", None) for part in (self.data, self.evaluation))
        if trained != evaluated and None not in (trained, evaluated):
            raise ValueError(
                f"rows are trained in form '{trained}' and evaluated in form '{evaluated}': set both data.form and "
                "evaluation.form (and model.positions: 81 for grid, 162 for pair)"
            )

    @property
    def described(self) -> dict[str, Any]:
        """All that a resumed run must share, besides the loop's settings."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "training"}

    @classmethod
    def load(cls, path: str | Path, modules: Iterable[str | ModuleType] = ()) -> RunConfig:
        """Read a config that `to_json` wrote, or the `config.json` of a run.

        What a run that was trained from Python does not say is `RowsOnDisk`, `SavedModel` and `NoEvaluation`.

        Args:
            path: the file.
            modules: whose classes the file may name besides those of unmask; they are imported. See
                `unmask.config.from_json`.

        Raises:
            ValueError: for a file that is neither, or names what is not of unmask nor of the modules.
        """
        path = Path(path)
        try:
            saved = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read a config from {path}: {error}") from None
        started = None
        if isinstance(saved, dict) and isinstance(saved.get("run"), dict):
            started = saved.get("started_in")
            unsaid = {"recipe": "python", "data": RowsOnDisk(), "model": SavedModel(), "evaluation": NoEvaluation()}
            known = {f.name for f in fields(cls)}
            said = {name: value for name, value in saved["run"].items() if name in known}
            saved = {"type": "RunConfig", **to_json(unsaid), **said, "training": saved.get("training")}
        try:
            config = from_json(saved, modules)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(config, cls):
            raise ValueError(f"{path} holds no config of a run")
        return config if started is None else config.found_from(path.parent / started)

    def found_from(self, folder: Path) -> RunConfig:
        """The same run, with the run that it starts from and files that its parts name looked for in a folder too."""
        parts = {name: getattr(self, name) for name in ("data", "model", "evaluation")}
        found = {name: part.found_from(folder) for name, part in parts.items() if isinstance(part, Findable)}
        return replace(self, **found, start=None if self.start is None else found_from(folder, self.start))

    def tokenizer(self) -> TextTokenizer | None:
        """What makes the rows' tokens, if they are text."""
        return self.data.tokenizer() if isinstance(self.data, Tokenized) else None

    def check(self, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise ValueError for what can be refused without building anything: see `train`."""
        check_launch()
        self.objective.check(self.masking)
        require(
            self.training.evaluate_every is None or not isinstance(self.evaluation, NoEvaluation),
            f"evaluate_every is {self.training.evaluate_every}, and this run evaluates nothing (NoEvaluation): "
            "--evaluate-every None, or give it an evaluation",
        )
        refuse_importance(self.masking, self.training.importance)
        length, positions = getattr(self.data, "length", None), getattr(self.model, "positions", None)
        require(
            length is None or positions is None or length <= positions,
            f"rows of up to {length} tokens do not fit into a model of {positions} positions: --data.length "
            f"{positions}, or --model.positions {length}",
        )
        if isinstance(self.data, Tokenized):
            self.data.check()
        tokenizer = self.tokenizer() if resume else None  # it takes long to learn, and the folder tells at once
        fingerprint = None if tokenizer is None else tokenizer.fingerprint
        check_folder(Path(out), to_json(self.described), self.training.changes_from, resume, overwrite, fingerprint)
        self.training.check_begun(checkpoint.steps_of(checkpoint.root_of(Path(out))) if resume else 0)
        tokenizer = self.tokenizer()
        if tokenizer is not None and isinstance(self.model, TextModel):
            tokenizer.check_model(self.model.mask, self.model.vocab_size)
        looked_up((self.masking, self.objective), tokenizer)
        check_guide(self.masking, self.objective, self.data)

    def train(
        self, out: str | Path, *, name: str | None = None, resume: bool = False, overwrite: bool = False
    ) -> Path:
        """Build everything and train in the folder `out`; returns the last checkpoint's folder.

        Args:
            out: folder of the run.
            name: on the display; by default the folder's.
            resume: go on from the newest whole checkpoint, or start afresh where there is none.
            overwrite: delete a run that `out` holds.
        """
        out = Path(out)
        self.check(out, resume=resume, overwrite=overwrite)
        torch.manual_seed(self.training.seed)
        model, tokenizer = self.model.build(), self.tokenizer()
        if self.start is not None:
            _put_weights(model, Path(self.start))
        if tokenizer is not None:
            model.check_tokenizer(tokenizer)
        masking, objective = looked_up((self.masking, self.objective), tokenizer)
        held_out, rows = self.data.held_out(), self.data.load()
        model.check_rows(held_out, of="the held-out rows")
        if getattr(self.data, "held_out_source", None) is not None:  # what is divided by content shares no document
            warn_of_shared(held_out, rows)
        rows = with_guide(masking, objective, rows, model, connect(self.training))
        trainer = Trainer(
            model,
            masking,
            rows,
            objective,
            self.training,
            out=out,
            held_out=_drawn(rows, self.training.seed),
            evaluate=self._evaluate(out, held_out, tokenizer),
            run=self.described,
            tokenizer=tokenizer,
            name=name or out.name,
        )
        last = trainer.train(resume=resume, overwrite=overwrite)
        if trainer.accelerator.is_main_process:
            from unmask.report.figures import draw_rates  # matplotlib takes half a second

            draw_rates(out)
        return last

    def _evaluate(self, out: Path, held_out: Dataset, tokenizer: TextTokenizer | None) -> Evaluation:
        """What the trainer calls: the evaluation, and with the last one a row unmasked step by step, in a file."""
        evaluate = started(self.evaluation, held_out, tokenizer)
        if not isinstance(self.evaluation, Watchable):
            return evaluate
        example = self.evaluation.example(held_out)
        if example.word is None and tokenizer is not None:
            example = replace(example, word=tokenizer.word, ends=tokenizer.ends)

        def watched(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            results = evaluate(model, last)
            if last:
                trace = trace_of(model, example, self.training.seed)
                if place_among_ranks()[0] == 0:
                    trace.save(out)
            return results

        return watched


ours(RunConfig)


def started(
    evaluation: EvaluationConfig | ReadsText, held_out: Dataset, tokenizer: TextTokenizer | None
) -> Evaluation:
    """Start an evaluation on held-out rows; ValueError for one that reads text, of a run whose rows are none."""
    if not isinstance(evaluation, ReadsText):
        return evaluation.start(held_out)
    if tokenizer is None:
        raise ValueError(f"{type(evaluation).__name__} reads what the model writes, and the run's rows are no text")
    return evaluation.start_text(held_out, tokenizer)


def load_run(folder: str | Path, modules: Iterable[str | ModuleType] = ()) -> tuple[RunConfig, Path]:
    """Read the config of a finished or running run, and find its newest whole checkpoint.

    The data of the config are text by the tokenizer that the checkpoint holds, whatever became of the files that it
    was learnt from.

    Args:
        folder: the run's folder, or one of its checkpoints.
        modules: whose classes the run may name besides those of unmask; they are imported.

    Raises:
        ValueError: for a folder that is neither, a run without a checkpoint, or one that names other classes.
    """
    folder = _checkpoint_of(Path(folder))
    config = RunConfig.load(folder.parent.parent / CONFIG_FILE, modules)
    if isinstance(config.data, Tokenized) and (folder / "model" / TOKENIZER_FILE).is_file():
        config = replace(config, data=config.data.with_tokenizer(folder / "model"))
    return config, folder


def tokenizer_of(folder: Path) -> TextTokenizer | None:
    """The tokenizer that a checkpoint holds, if the run's rows are text."""
    return TextTokenizer.load(folder / "model") if (folder / "model" / TOKENIZER_FILE).is_file() else None


def _checkpoint_of(folder: Path) -> Path:
    """The checkpoint itself, or a run's newest; ValueError for a folder that is neither, or has none."""
    root = folder.parent.parent if (folder / checkpoint.MANIFEST).is_file() else folder
    if read_config(root) is None:
        raise ValueError(f"{folder} is neither a run's folder nor a checkpoint: there is no config.json")
    if root != folder:
        checkpoint.check(folder)
        return folder
    newest = checkpoint.newest(checkpoint.root_of(root))
    if newest is None:
        raise ValueError(f"the run in {folder} has no checkpoint yet")
    return newest


def _drawn(rows: Dataset | IterableDataset, seed: int, count: int = 256) -> Dataset:
    """Some training rows, by the seed, to fit rates to: what evaluates a run chooses nothing in it."""
    rows = at_hand(rows, count)
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:count])


def _put_weights(model: MaskedDiffusionLM, run: Path) -> None:
    """Put the weights of a run's newest checkpoint into a model: the averaged ones where there are some."""
    folder = _checkpoint_of(run)
    weights = checkpoint.weights_of(folder)
    if model.is_hugging_face and (weights / "config.json").is_file():
        other = other_sizes(model.hugging_face.config, weights)
        require(not other, f"the model to start from, in {folder}, has other sizes: {'; '.join(other)}")
    try:
        model.load_state_dict(read_weights(model, weights))
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} are of another model: {error}") from None


def load_model(folder: Path, modules: Iterable[str | ModuleType] = ()) -> MaskedDiffusionLM:
    """The model of a checkpoint: the averaged weights where there are some.

    Args:
        folder: the checkpoint's.
        modules: whose classes the run may name besides those of unmask; they are imported.

    Raises:
        ValueError: for adapters, or a model that is not Hugging Face's, where the run does not say what they are of.
    """
    config = folder.parent.parent / CONFIG_FILE
    folder = checkpoint.weights_of(folder)
    adapted = (folder / ADAPTERS_FILE).is_file()
    if (folder / "config.json").is_file() and not adapted:
        return MaskedDiffusionLM.from_pretrained(folder)
    named = RunConfig.load(config, modules).model
    if adapted and isinstance(named, SavedModel):
        return load_adapted(folder)
    model = named.build()
    model.load_state_dict(read_weights(model, folder))
    return model

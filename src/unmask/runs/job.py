"""A job: one run and what is evaluated once on its final model, made by a process of its own.

    python -m unmask.runs.job JOB.json [MODULE ...]

MODULE are those of a user's own classes, which the configs name and are imported.

All that a job does is found in the run's folder again: the checkpoint of its last step and its evaluation in the log,
finals/NAME.json for each final evaluation, provenance.json. So a job that was killed is done again by the same call,
and what is there stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from unmask.config import completed, differences, from_json, modules_of, to_json
from unmask.evaluation.hashes import data_hash
from unmask.evaluation.results import COMMAND, WEIGHTS
from unmask.runs.config import EvaluationConfig, ReadsText, RunConfig, load_model, started, tokenizer_of
from unmask.store import checkpoint
from unmask.store.files import replace_text
from unmask.store.folder import CONFIG_FILE, check_folder, read_config
from unmask.store.metrics import logged
from unmask.training.console import told_as_lines
from unmask.training.platform import autocast, autocast_dtype, default_device

FINALS, PROVENANCE = "finals", "provenance.json"
DIGITS = 16
"""Of a hash, in a run's provenance."""


@dataclass(frozen=True)
class Job:
    """A run with its final evaluations.

    Attributes:
        name: for people.
        config: of the run.
        out: the run's folder.
        finals: by name, what is evaluated once, on the model of the last step.
        after: folder of a run that must be whole before this one starts.
        reduce: once all is there, keep only the last checkpoint, and of it only the weights.
        command: the command line that makes it, for its provenance.
    """

    name: str
    config: RunConfig
    out: Path
    finals: Mapping[str, EvaluationConfig | ReadsText] = field(default_factory=dict)
    after: Path | None = None
    reduce: bool = False
    command: str = ""

    @property
    def modules(self) -> list[str]:
        """Modules of the user's own classes and functions in its configs."""
        return sorted(modules_of((self.config, self.finals)))

    @property
    def last(self) -> Path:
        """Folder of the last step's checkpoint."""
        return checkpoint.folder_of(checkpoint.root_of(self.out), self.config.training.steps)

    @property
    def is_trained(self) -> bool:
        """Whether the last step is saved, and evaluated: where that fails, the step is saved before.

        A checkpoint is renamed into place, so that it is whole or absent.
        """
        saved = (self.last / checkpoint.MANIFEST).is_file()
        return saved and logged(self.out, "evaluation", self.config.training.steps)

    @property
    def steps_done(self) -> int:
        """Of the newest checkpoint."""
        return checkpoint.steps_of(checkpoint.root_of(self.out))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to do."""
        parts = [self.out / PROVENANCE, *map(self.final_path, self.finals)]
        return self.is_trained and all(path.is_file() for path in parts)

    def final_path(self, name: str) -> Path:
        """Where the result of a final evaluation lies."""
        return self.out / FINALS / f"{name}.json"

    def check_folder(self) -> None:
        """Raise ValueError where the folder holds another run; looks at its config alone."""
        saved = read_config(self.out)
        if saved is not None:
            run, changes = to_json(self.config.described), self.config.training.changes_from
            check_folder(self.out, run, changes, resume=True, overwrite=False, tokenizer=saved.get("tokenizer"))

    def check(self) -> None:
        """Raise ValueError where the folder holds another run, or another evaluation under one of the names."""
        self.config.check(self.out, resume=True)
        for name, final in self.finals.items():
            path = self.final_path(name)
            if path.is_file():
                changed = differences(completed(json.loads(path.read_text())["config"]), to_json(final))
                if changed:
                    raise ValueError(
                        f"{path} was measured in another way: {'; '.join(changed)}. Delete it to measure again, or "
                        "give the evaluation another name"
                    )

    def run(self) -> None:
        """Do what is left."""
        if not self.is_trained:
            self.config.train(self.out, name=self.name, resume=True)
        if not (self.out / PROVENANCE).is_file():
            replace_text(self.out / PROVENANCE, json.dumps(self._provenance(), indent=2) + "\n")
        for name, final in self.finals.items():
            if not self.final_path(name).is_file():
                result = {"config": to_json(final), "result": to_json(self._evaluate(final))}
                self.final_path(name).parent.mkdir(exist_ok=True)
                replace_text(self.final_path(name), json.dumps(result, indent=2) + "\n")
        if self.reduce:
            checkpoint.reduce(self.last, ("model", "ema"))
            checkpoint.delete(folder for folder in checkpoint.saved(self.last.parent) if folder != self.last)

    def _provenance(self) -> dict[str, Any]:
        made = {COMMAND: self.command} if self.command else {}
        return made | provenance(self.config) | self._hashes()

    def _hashes(self) -> dict[str, str]:
        """Of rows, tokenizer and weights: SHA-256, the first digits of it."""
        apart, rows = self.config.data.held_out(), self.config.data.load()
        found = {"held-out rows": data_hash(apart)}
        if isinstance(rows, Dataset):  # a stream is not read again
            found["rows"] = data_hash(rows)
        tokenizer = json.loads((self.out / CONFIG_FILE).read_text()).get("tokenizer")
        if tokenizer is not None:
            found["tokenizer"] = tokenizer
        weights = hashlib.sha256()
        for file in sorted((self.last / "model").glob("*.safetensors")):
            weights.update(file.read_bytes())
        found[WEIGHTS] = weights.hexdigest()
        return {name: digest[:DIGITS] for name, digest in found.items()}

    def _evaluate(self, final: EvaluationConfig | ReadsText) -> dict[str, Any]:
        """In the precision of the training steps."""
        device = default_device()
        model = load_model(self.last, self.modules).to(device).eval()
        evaluate = started(final, self.config.data.held_out(), tokenizer_of(self.last))
        with autocast(device, autocast_dtype(self.config.training.precision, device)):
            return evaluate(model, True)

    def save(self, path: Path) -> None:
        """Write what `load` reads."""
        plain = {f.name: to_json(getattr(self, f.name)) for f in fields(self)}
        replace_text(path, json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, modules: Iterable[str] = ()) -> Job:
        """Read a job; `modules` are those of the classes not of unmask that its configs may name."""
        saved = json.loads(path.read_text())
        made = {part: from_json(saved[part], modules) for part in ("config", "finals")}
        made |= {part: saved[part] and Path(saved[part]) for part in ("out", "after")}
        return cls(**saved | made)


def provenance(config: RunConfig) -> dict[str, Any]:
    """What a run was made on and with: device, numbers' type, threads, versions."""
    device = default_device()
    dtype = autocast_dtype(config.training.precision, device)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        "python": platform.python_version(),
        **{name: version(name) for name in ("unmask", "torch", "transformers", "numpy")},
    }


def _processor() -> str:
    """The processor's name; where the system does not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _end_with_parent() -> None:
    """End this process once standard input closes: its other end is the parent's, whatever the parent dies of."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, which would hold a lock that Python's own end waits for
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    try:
        with told_as_lines():
            Job.load(Path(sys.argv[1]), sys.argv[2:]).run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"unmask: {error}", file=sys.stderr)
        raise SystemExit(2) from None

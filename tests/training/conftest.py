"""Tiny real models, rows and runs for the tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import GPT2Config

from unmask import ExactCount, IndependentMasking, MaskedDiffusionLM, Trainer, TrainingConfig
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """Forty real puzzles."""
    return load_sudoku("train", limit=40)


@pytest.fixture(scope="session")
def short_rows() -> Dataset:
    """Eight rows of six tokens below 8; the first position is given."""
    tokens = [[(3 * i + j) % 8 for j in range(6)] for i in range(8)]
    return Dataset.from_dict({"tokens": tokens, "maskable": [[False] + [True] * 5] * 8})


@pytest.fixture(scope="session")
def build() -> Callable[..., MaskedDiffusionLM]:
    """A function that makes a tiny model; the same arguments give the same weights."""

    def make(dropout: float = 0.0, std: float = 0.02, seed: int = 0, double: bool = False, **options: Any):
        torch.manual_seed(seed)
        config = GPT2Config(
            **{
                "vocab_size": VOCAB_SIZE,
                "n_positions": 81,
                "n_embd": 16,
                "n_layer": 1,
                "n_head": 2,
                "resid_pdrop": dropout,
                "embd_pdrop": dropout,
                "attn_pdrop": dropout,
                "initializer_range": std,
                "bos_token_id": None,
                "eos_token_id": None,
                **options,
            }
        )
        model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
        return model.double() if double else model

    return make


@pytest.fixture
def trainer(tmp_path: Path, rows: Dataset, build: Callable[..., MaskedDiffusionLM]) -> Callable[..., Trainer]:
    """A function that makes a trainer: some settings by name, everything else small."""

    def make(out: str = "run", *, model=None, masking=None, dataset=None, objective=None, evaluate=None, **settings):
        config = TrainingConfig(
            **{
                "steps": 6,
                "batch_size": 8,
                "warmup_steps": 2,
                "precision": "fp32",
                "threads": 1,
                "tracker": "none",
                "log_every": 1,
                **settings,
            }
        )
        return Trainer(
            model or build(),
            masking or IndependentMasking(mask=ExactCount()),
            dataset or rows,
            objective,
            config,
            out=tmp_path / out,
            held_out=load_sudoku("test", limit=5) if dataset is None else None,
            evaluate=evaluate,
        )

    return make


@pytest.fixture(scope="session")
def weights_in() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that reads the weights, or the averaged ones, of a checkpoint."""

    def read(checkpoint: Path, which: str = "model") -> dict[str, torch.Tensor]:
        return load_file(checkpoint / which / "model.safetensors")

    return read


@pytest.fixture(scope="session")
def state_of() -> Callable[[Path], dict[str, bytes]]:
    """A function that gives every file of a checkpoint but its times, as bytes."""

    def read(checkpoint: Path) -> dict[str, bytes]:
        files = {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
        return {name: content for name, content in files.items() if name not in ("manifest.json", "optimizer.json")}

    return read


class Stopped(Exception):
    """Raised from an evaluation: the run ends there, as it would at a crash."""


@pytest.fixture
def stop_at() -> Callable[[int], Callable[..., dict[str, Any]]]:
    """A function: the evaluation that ends a run once so many evaluations went well."""

    def make(evaluations: int) -> Callable[..., dict[str, Any]]:
        calls = iter(range(evaluations + 1))

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            if next(calls) == evaluations:
                raise Stopped
            return {}

        return evaluate

    make.error = Stopped  # type: ignore[attr-defined]
    return make


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], Any]:
    """A context in which no file can grow beyond so many bytes: a real failure of the system's write."""
    import resource

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited

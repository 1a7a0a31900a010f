"""Tiny texts, tokenizers and runs for the tests of the recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.recipes import HeldOutLikelihood, RunConfig


@pytest.fixture(scope="session")
def tiny() -> Callable[..., tuple[RunConfig, Path]]:
    """A function that cuts a run down to seconds and trains it: the run and its last checkpoint."""

    def train(run: RunConfig, out: Path, **changes: Any) -> tuple[RunConfig, Path]:
        training = replace(
            run.training,
            steps=3,
            batch_size=8,
            micro_batch_size=None,
            warmup_steps=1,
            evaluate_every=2,
            checkpoint_every=None,
            tracker="none",
            threads=1,
            precision="fp32",
        )
        run = replace(run, training=training, evaluation=HeldOutLikelihood(samples=2), **changes)
        return run, run.train(out)

    return train


@pytest.fixture
def prose(tmp_path) -> str:
    """Forty short texts, as a pattern of files."""
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"the {chr(97 + i % 26) * 3} cat sat on mat {i} " * 20)
    return str(tmp_path / "*.txt")

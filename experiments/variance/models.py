"""The two briefly trained models whose noise is measured, and their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from unmask import ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean, Trainer, TrainingConfig
from unmask.data.text import load_text
from unmask.data.tokenizers import TextTokenizer, character_tokenizer
from unmask.recipes import TextModel, sudoku
from unmask.runs.config import load_model
from unmask.store import checkpoint

RUNS = Path("runs")


def trained(name: str, steps: int) -> Path | None:
    """The checkpoint after `steps` steps, if there is one."""
    last = checkpoint.newest(RUNS / name / "checkpoints")
    return last if last is not None and checkpoint.check(last)["step"] == steps else None


def sudoku_model(steps: int, threads: int) -> tuple[MaskedDiffusionLM, Dataset]:
    """The Sudoku recipe, stopped early."""
    config = sudoku("uniform-count")
    training = replace(config.training, steps=steps, evaluate_every=None, threads=threads)
    config = replace(config, training=training, evaluation=replace(config.evaluation, final_puzzles=100))
    last = trained("variance-model", steps) or config.train(RUNS / "variance-model", overwrite=True)
    return load_model(last), config.data.load()


def text_model(steps: int, threads: int) -> tuple[MaskedDiffusionLM, Dataset]:
    """A small bidirectional Llama on State of the Union addresses in 27 letters, rows of 128."""
    tokenizer = character_tokenizer(alphabet="27")
    rows = load_text("sotu", "train", tokenizer=tokenizer, length=128)
    rows = rows.select(np.random.default_rng(0).permutation(len(rows) - 1))  # the last row may be short
    last = trained("variance-text", steps) or _train_text(rows, tokenizer, steps, threads)
    return load_model(last), rows


def _train_text(rows: Dataset, tokenizer: TextTokenizer, steps: int, threads: int) -> Path:
    torch.manual_seed(0)
    trainer = Trainer(
        TextModel(tokenizer.vocab_size, tokenizer.mask_token_id).build(),
        IndependentMasking(mask=ExactCount(), coupling="stratified"),
        rows,
        RowMean(),
        TrainingConfig(steps=steps, batch_size=16, learning_rate=2e-3, threads=threads, tracker="none"),
        out=RUNS / "variance-text",
    )
    return trainer.train(overwrite=True)


MODELS = {"sudoku": sudoku_model, "text": text_model}

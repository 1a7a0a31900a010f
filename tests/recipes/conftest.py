"""Tiny texts, tokenizers and runs for the tests of the recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unmask.recipes import HeldOutLikelihood, RunConfig

WORDS = ["<pad>", "<bos>", "<eos>", *"abcdefghijklmnopqrstuvwxyz", "?", "=", "#"]


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
def words(tmp_path) -> str:
    """A word-level tokenizer without a mask token, and a causal model of it, as published."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[^ ]"), "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "words")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


@pytest.fixture
def prose(tmp_path) -> str:
    """Forty short texts, as a pattern of files."""
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"the {chr(97 + i % 26) * 3} cat sat on mat {i} " * 20)
    return str(tmp_path / "*.txt")

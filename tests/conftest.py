"""Builders that the tests share, as fixtures that return plain functions; tiny real models, rows and runs."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unmask import (
    ELBO,
    PPOTS,
    ExactCount,
    IndependentMasking,
    MaskedBatch,
    MaskedDiffusionLM,
    RowStream,
    Scores,
    TokenBatch,
    Trainer,
    TrainingConfig,
)
from unmask.cli import main
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku

torch.set_num_threads(1)

WORDS = ["<pad>", "<bos>", "<eos>", *"abcdefghijklmnopqrstuvwxyz", "?", "=", "#"]


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """A shell starts what runs behind it with SIGINT ignored, and nohup with SIGHUP; runs heed that, and tests, and
    what they start, must not be told so."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(scope="session")
def dataset_of():
    """Build a data set of rows with the given L_eff; token p of row r is 100 r + p, so rows can be told apart.

    Each row starts with `prompt` clues; with `gaps`, every third position after it is a clue too.
    """

    def build(lengths, prompt=1, gaps=False):
        tokens, maskable = [], []
        for row, length in enumerate(lengths):
            flags = [False] * prompt
            while sum(flags) < length:
                flags.append(not (gaps and len(flags) % 3 == 0))
            tokens.append([100 * row + position for position in range(len(flags))])
            maskable.append(flags)
        return datasets.Dataset.from_dict({"tokens": tokens, "maskable": maskable})

    return build


@pytest.fixture(scope="session")
def stream_of(dataset_of):
    """Build a RowStream over `dataset_of(lengths)`."""

    def build(lengths, seed=0, rank=0, world_size=1, **columns):
        return RowStream(dataset_of(lengths, **columns), seed=seed, rank=rank, world_size=world_size)

    return build


@pytest.fixture(scope="session")
def token_batch():
    """Build a TokenBatch from rows of tokens and flags of equal length; everything is real by default."""

    def build(tokens, maskable=None, attention=None, row=None, draw=None, weight=None):
        tokens = torch.as_tensor(tokens)
        everything = torch.ones(tokens.shape, dtype=torch.bool)
        return TokenBatch(
            tokens=tokens,
            maskable=everything if maskable is None else torch.as_tensor(maskable),
            attention=everything if attention is None else torch.as_tensor(attention),
            row=torch.arange(len(tokens)) if row is None else torch.as_tensor(row),
            draw=torch.zeros(len(tokens), dtype=torch.int64) if draw is None else torch.as_tensor(draw),
            weight=torch.ones(len(tokens)) if weight is None else torch.as_tensor(weight),
        )

    return build


@pytest.fixture(scope="session")
def masked_batch(token_batch):
    """Build a MaskedBatch from rows of tokens and of mask flags."""

    def build(tokens, masked, rate=None, density=None, **columns):
        clean = token_batch(tokens, **columns)
        return MaskedBatch(clean, torch.as_tensor(masked), rate, density)

    return build


@pytest.fixture(scope="session")
def random_scores():
    """Build float64 scores of random logits over a small vocabulary, for every position [B, L]."""

    def build(shape, generator, sharpness=3.0):
        logits = sharpness * torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
        return Scores.from_logits(logits, needs=("log_confidence", "margin", "entropy"))

    return build


@pytest.fixture(scope="session")
def same():
    """Tell whether two batches are equal in every field, bit for bit."""

    def compare(a, b):
        for name in a.__dataclass_fields__:
            x, y = getattr(a, name), getattr(b, name)
            if isinstance(x, torch.Tensor):
                if not (x.dtype == y.dtype and torch.equal(x, y)):
                    return False
            elif hasattr(x, "__dataclass_fields__"):
                if not compare(x, y):
                    return False
            elif x is not y:
                return False
        return True

    return compare


@pytest.fixture(scope="session")
def joined():
    """Join token or masked batches along the rows, after padding all to one length."""

    def join(parts):
        return type(parts[0]).concatenated(parts)

    return join


@pytest.fixture
def command(capsys):
    """Run the command line: exit code, standard output and standard error, in plain words."""

    def run(*words):
        code = 0
        try:
            main(list(words))
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, *(" ".join(re.sub(r"[│╭╮╰╯─┃┏┓┡┩┳╇]", " ", text).split()) for text in (said.out, said.err))

    return run


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
        given = {name: settings.pop(name) for name in ("callbacks", "optimizer", "learning_rate") if name in settings}
        if not callable(given.get("learning_rate", min)):
            settings["learning_rate"] = given.pop("learning_rate")
        if evaluate is None:
            settings.pop("evaluate_every", None)
        if objective is None and isinstance(getattr(masking, "time", None), PPOTS):
            objective = ELBO()  # rates that are fitted need its weight
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
            **given,
        )

    return make


@pytest.fixture(scope="session")
def weights_in() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that reads the weights or the adapters, or the averaged ones, of a checkpoint."""

    def read(checkpoint: Path, which: str = "model") -> dict[str, torch.Tensor]:
        (file,) = (checkpoint / which).glob("*model.safetensors")
        return load_file(file)

    return read


@pytest.fixture(scope="session")
def state_of() -> Callable[[Path], dict[str, bytes]]:
    """A function that gives every file of a checkpoint but its times, as bytes."""

    def read(checkpoint: Path) -> dict[str, bytes]:
        files = {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
        return {name: content for name, content in files.items() if name not in ("manifest.json", "optimizer.json")}

    return read


class Stopped(BaseException):
    """Raised from an evaluation: the run ends there, as it would at a crash, and nothing is saved."""


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


@pytest.fixture(scope="session")
def forked_ranks() -> Callable[..., list[int | None]]:
    """A function: run `work(rank)` in processes that gloo may connect; exit codes, None for one killed after `limit`
    seconds. They are forks of the test's own process, so that what they share is imported already."""

    def run(work: Callable[[int], None], ranks: int = 2, limit: float = 100.0) -> list[int | None]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def connected(rank: int) -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
            os.environ.update(
                WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), RANK=str(rank), LOCAL_RANK=str(rank)
            )
            AcceleratorState._reset_state()
            PartialState._reset_state()
            work(rank)

        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=connected, args=(rank,)) for rank in range(ranks)]
        for process in started:
            process.start()
        until = time.monotonic() + limit
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        return codes

    return run

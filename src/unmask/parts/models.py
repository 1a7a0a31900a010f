"""Models by their sizes, with random weights, or pretrained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GPT2Config, LlamaConfig

from unmask.config import positive_int, require
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.lora import LoRA
from unmask.models.pretrained import from_pretrained, located
from unmask.parts.places import found_from


def gpt2_config(vocab_size: int, positions: int, width: int, layers: int, heads: int, init_std: float) -> GPT2Config:
    """A small GPT-2 body with learned positions, for puzzles: no dropout, nothing tied, no special tokens."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu",
        initializer_range=init_std,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


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

    @property
    def mask(self) -> int:
        """The mask token."""
        return self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id

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
        return MaskedDiffusionLM.from_config(config, self.mask, self.shifted)


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

    def found_from(self, folder: Path) -> PretrainedModel:
        """The same model, looked for in a folder too."""
        return replace(self, name=found_from(folder, self.name))

    def build(self) -> MaskedDiffusionLM:
        """The model with its weights in fp32, which is what is trained."""
        place, options = located(self.name)
        lora = None if self.lora_rank is None else LoRA(self.lora_rank, self.lora_alpha)
        shifted: Any = "auto" if self.shifted is None else self.shifted
        return from_pretrained(
            place, mask_token=self.mask_token, shifted=shifted, lora=lora, dtype="float32", **options
        ).model


@dataclass(frozen=True)
class SavedModel:
    """A model that a trainer was handed from Python: no config says how to build it, checkpoints alone hold it."""

    def build(self) -> MaskedDiffusionLM:
        """Raise ValueError: nothing says what to build."""
        raise ValueError(
            "the run was trained from Python with a model that its config does not name. Give the Trainer "
            "run={'model': a frozen dataclass of yours with build(), ...}, and open the run with --module"
        )

"""MaskedDiffusionLM: a Hugging Face backbone made bidirectional, with the masked head.

Everything that reads predictions (loss, reveal scores, sampling) gets hidden states aligned with the
positions they predict from one place, `MaskedDiffusionLM.hidden`, so they cannot disagree about a shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from unmask.batch import MaskedBatch, Scores, Tensors
from unmask.models.attention import BlockLayout
from unmask.models.head import MaskedHead
from unmask.models.lora import WEIGHTS_FILE as ADAPTERS_FILE
from unmask.models.lora import has_adapters, load_adapters, save_adapters
from unmask.objectives import Objective


@dataclass(frozen=True)
class MaskedOutput(Tensors):
    """What a forward over a masked batch returns.

    Attributes:
        loss: scalar Σ weight · nll, differentiable.
        nll: [B, L] nats of each masked token, fp32; 0 where nothing is masked; no gradient.
        scores: the statistics asked for, or None.
        gradient: [B, L] length of the loss's gradient with respect to each masked position's hidden state, if
            asked for.
        factor: [B, L] what the objective multiplied the weights by, if it reweights.
    """

    loss: Tensor
    nll: Tensor
    scores: Scores | None
    gradient: Tensor | None = None
    factor: Tensor | None = None


class MaskedDiffusionLM(nn.Module):
    """A denoiser: reads partly masked rows, predicts the masked tokens.

    Args:
        backbone: maps `input_ids` and `attention_mask` [B, L] to an object with `last_hidden_state` [B, L, d]; for
            blocks also `position_ids` and a mask [B, 1, L, L].
        head: a `MaskedHead`, or the linear output layer that one is to be made of.
        mask_token_id: id of the mask token, inside the vocabulary.
        shifted: hidden[i - 1] predicts token i, as in a model initialised from an autoregressive one. Position
            0 then has no predecessor: prepend a BOS, or keep it unmaskable.

    Raises:
        ValueError: for a mask token outside the vocabulary.
    """

    def __init__(
        self, backbone: nn.Module, head: MaskedHead | nn.Module, mask_token_id: int, shifted: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head if isinstance(head, MaskedHead) else MaskedHead(head)
        if not 0 <= mask_token_id < self.head.vocab_size:
            raise ValueError(f"mask_token_id {mask_token_id} is outside the vocabulary of {self.head.vocab_size}")
        self.mask_token_id, self.shifted = mask_token_id, shifted
        # The Hugging Face model that backbone and head are parts of; a tuple keeps it from being registered.
        self._container: tuple[PreTrainedModel, ...] = ()

    @classmethod
    def from_hf(cls, model: PreTrainedModel, mask_token_id: int, shifted: bool = False) -> MaskedDiffusionLM:
        """Wrap a Hugging Face causal or masked language model; its attention becomes bidirectional.

        Raises:
            ValueError: for a model without output embeddings.
        """
        output = model.get_output_embeddings()
        if output is None or model.base_model is model:
            raise ValueError(
                f"{type(model).__name__} has no language-model head; use AutoModelForCausalLM or AutoModelForMaskedLM"
            )
        make_bidirectional(model)
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"{type(model).__name__} changes its logits ({name}): the masked head cannot")
        denoiser = cls(model.base_model, MaskedHead(output, _transform_of(model)), mask_token_id, shifted)
        denoiser._container = (model,)
        model.config.mask_token_id = mask_token_id
        model.config.unmask_shifted = shifted
        return denoiser

    @classmethod
    def from_config(cls, config: PretrainedConfig, mask_token_id: int, shifted: bool = False) -> MaskedDiffusionLM:
        """Make a model with random weights from a Hugging Face config of a causal or masked language model."""
        return cls.from_hf(auto_class(config).from_config(config), mask_token_id, shifted)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> MaskedDiffusionLM:
        """Load a folder that `save_pretrained` wrote. `options` go to Hugging Face's `from_pretrained`.

        Raises:
            ValueError: for a folder that is not there or does not name its mask token.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} is not a model folder: it has no config.json")
        if (Path(folder) / ADAPTERS_FILE).is_file():
            raise ValueError(
                f"{folder} holds LoRA adapters alone: build the model they belong to and `load_weights(folder)`, "
                "or let unmask.save_pretrained write a merged folder"
            )
        config = AutoConfig.from_pretrained(folder)
        mask_token_id = getattr(config, "mask_token_id", None)
        if mask_token_id is None:
            raise ValueError(f"{folder}/config.json names no mask_token_id: it was not saved by unmask")
        with _quiet():
            model = auto_class(config).from_pretrained(folder, **options)
        return cls.from_hf(model, mask_token_id, getattr(config, "unmask_shifted", False))

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a Hugging Face folder (safetensors and config.json) that opens without this library.

        With LoRA it holds the adapters alone, as peft writes them.

        Args:
            folder: where to.
            state: weights to save instead of the model's own (an average of them, or gathered shards), with
                the names of `state_dict()`.
        """
        container, names = self.hugging_face, self._container_names()
        renamed = None if state is None else {names[name]: tensor for name, tensor in state.items()}
        if self.has_adapters:
            save_adapters(container, folder, renamed)
            return
        with _quiet():
            container.save_pretrained(folder, state_dict=renamed)

    def load_weights(self, folder: str | Path) -> dict[str, Tensor]:
        """Read the weights of a folder that `save_pretrained` wrote, with the names of `state_dict()`.

        With LoRA the folder gives the adapters, the model itself the rest.
        """
        if self.has_adapters:
            theirs = self._container[0].state_dict() | load_adapters(self._container[0], folder)
            return {name: theirs[there] for name, there in self._container_names().items()}
        with _quiet():
            loaded: Any = type(self._container[0]).from_pretrained(
                folder, config=self._container[0].config, dtype="auto", output_loading_info=True
            )
        model, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"{folder} lacks weights of this model: {', '.join(sorted(report['missing_keys'])[:3])}")
        theirs = model.state_dict()
        return {name: theirs[there] for name, there in self._container_names().items()}

    @property
    def is_hugging_face(self) -> bool:
        """Whether it was made from a Hugging Face model, and so has a folder format."""
        return bool(self._container)

    @property
    def has_adapters(self) -> bool:
        """Whether `add_lora` was called on it."""
        return self.is_hugging_face and has_adapters(self.hugging_face)

    @property
    def hugging_face(self) -> PreTrainedModel:
        """The Hugging Face model that backbone and head are parts of; ValueError where there is none."""
        if not self._container:
            raise ValueError("this model was not made from a Hugging Face model, so it has no folder format")
        return self._container[0]

    @property
    def config(self) -> PretrainedConfig | None:
        """The Hugging Face config, or None for a backbone of another kind."""
        return getattr(self.backbone, "config", None)

    def hidden(
        self, noisy: Tensor, attention: Tensor, block: Tensor | None = None, clean: Tensor | None = None
    ) -> Tensor:
        """[B, L, d] hidden states, aligned: hidden[:, i] predicts position i.

        Args:
            noisy: [B, L] token ids with mask tokens.
            attention: [B, L] bool, real tokens.
            block: [B, L] int64 block of each position, from 0, never decreasing along a row: position i sees its
                own and earlier blocks. None: no blocks.
            clean: [B, L] the same rows without masks: every block is predicted from the *clean* blocks before
                it, and only the masked positions' states mean anything. None: from the blocks as they are in
                `noisy`.

        Raises:
            ValueError: where there are blocks, and the backbone cannot be told who sees whom.
        """
        # The shift, once: which position's state predicts position i.
        predictor = (torch.arange(noisy.shape[1], device=noisy.device) - int(self.shifted)).clamp(min=0)
        if block is None or not block.any():
            mask = None if bool(attention.all()) else attention
            hidden = self.backbone(input_ids=noisy, attention_mask=mask).last_hidden_state
            return hidden[:, predictor] if self.shifted else hidden
        masked = torch.zeros_like(attention) if clean is None else noisy != clean
        if clean is None or not masked.any():
            clean, layout = noisy, BlockLayout.single(block, attention, predictor)
        else:
            layout = BlockLayout.double(block, attention, predictor, masked)
        hidden = self.backbone(
            input_ids=layout.tokens(noisy, clean),
            attention_mask=layout.attention_mask(self.backbone),
            position_ids=layout.position.expand(len(noisy), -1),
        ).last_hidden_state
        return layout.read(hidden)

    def forward(
        self,
        batch: MaskedBatch,
        weights: Tensor | None = None,
        needs: tuple[str, ...] | None = None,
        objective: Objective | None = None,
    ) -> MaskedOutput:
        """Loss, per-token nll and scores of a masked batch, in one pass.

        Args:
            batch: the rows; only masked positions are predicted.
            weights: [B, L] weight of each token's nll, the normaliser 1/Z included (see
                `unmask.objectives`). By default the mean over masked tokens.
            needs: statistics of `Scores` to return as well (a process's `needs`); None for none. "gradient"
                adds the lengths of the gradient at the hidden states.
            objective: one that reweights tokens by the model's own scores; any other changes nothing.
        """
        masked = batch.masked
        if self.shifted and bool(masked[:, 0].any()):
            raise ValueError(
                "a shifted model cannot predict position 0: prepend a BOS token, or make position 0 unmaskable"
            )
        hidden = self.hidden(batch.noisy(self.mask_token_id), batch.clean.attention, batch.block, batch.clean.tokens)
        flat = masked.flatten().nonzero()[:, 0]
        token_weights = (
            weights.flatten()[flat] if weights is not None else torch.full((len(flat),), 1 / max(1, len(flat)))
        )
        token_weights = token_weights.to(hidden.device)
        states, targets = hidden.flatten(0, 1).index_select(0, flat), batch.clean.tokens.flatten()[flat]

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(masked.numel()).index_copy(0, flat, values).view(masked.shape)

        factor, sharpness = None, None
        if objective is not None and objective.reads is not None:
            with torch.no_grad():
                _, nll, found = self.head(states, targets, token_weights, self.mask_token_id, objective.reads)
                scores = Scores(**{name: spread(value) for name, value in found.items()}, nll=spread(nll))
                factor = objective.reweight(batch, scores)
                extra = objective.sharpness(batch, scores)
                token_weights = token_weights * factor.flatten()[flat]
                sharpness = None if extra is None else extra.flatten()[flat]
        loss, nll, found = self.head(states, targets, token_weights, self.mask_token_id, needs, sharpness)
        full_nll = spread(nll)
        statistics = {name: spread(value) for name, value in found.items()}
        gradient = statistics.pop("gradient", None)
        scores = None if needs is None else Scores(**statistics, nll=full_nll)
        return MaskedOutput(loss, full_nll, scores, gradient, factor)

    @torch.no_grad()
    def predict(self, noisy: Tensor, attention: Tensor, masked: Tensor, block: Tensor | None = None) -> Tensor:
        """[N, V] logits in fp32 at the N masked positions, row by row, with the mask token at -inf.

        With `block` [B, L], position i sees its own and earlier blocks alone, as they are in `noisy`: the model
        of block diffusion at the block that is being filled, where the earlier ones are known.
        """
        if self.shifted and bool(masked[:, 0].any()):
            raise ValueError("a shifted model cannot predict position 0: prepend a BOS token")
        hidden = self.hidden(noisy, attention, block).flatten(0, 1)
        return self.head.logits(hidden[masked.flatten()], self.mask_token_id)

    def _container_names(self) -> dict[str, str]:
        """Names of `state_dict()` against those of the Hugging Face model, matched by identity."""
        theirs = {id(t): name for name, t in self._container[0].state_dict(keep_vars=True).items()}
        return {name: theirs[id(t)] for name, t in self.state_dict(keep_vars=True).items()}


def _transform_of(model: PreTrainedModel) -> nn.Module | None:
    """What an encoder puts between its backbone and the output layer: BERT's transform, ModernBERT's head."""
    predictions = getattr(getattr(model, "cls", None), "predictions", None)
    found = getattr(predictions, "transform", None) or getattr(model, "head", None)
    return found if isinstance(found, nn.Module) else None


def make_bidirectional(model: PreTrainedModel) -> None:
    """Drop the causal mask of a Hugging Face model through its config; encoders are left as they are."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.is_causal = False
            module.config.use_cache = False
        elif getattr(module, "is_causal", None) is True:
            module.is_causal = cast(Any, False)  # attention layers that pass it on to a fused kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and back on whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for every file: a run's own display is enough."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def auto_class(config: PretrainedConfig) -> Any:
    """AutoModelForCausalLM or AutoModelForMaskedLM, whichever a config's model is; ValueError for neither."""
    name = config.model_type
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "MaskedLM" not in str(config.architectures):
        # Encoders with a causal variant (BERT) are meant as encoders.
        if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "CausalLM" not in str(config.architectures):
            return AutoModelForMaskedLM
        return AutoModelForCausalLM
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    raise ValueError(f"transformers knows no causal or masked language model of type '{name}'")

"""What trainers ask of a Hugging Face model: a denoiser answers as the model inside it would.

accelerate and transformers look for tied weights, embeddings, layers that are not to be split and checkpointing of
activations by these names. A model without the answers is not refused by them, it is sharded or trained otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from unmask.models.head import MaskedHead


class AnswersTrainers(nn.Module):
    """Base of `MaskedDiffusionLM`. A backbone that is not Hugging Face's has no input embeddings and nothing tied."""

    backbone: nn.Module
    head: MaskedHead
    base_model_prefix = "backbone"
    _container: tuple[PreTrainedModel, ...]

    @classmethod
    def check(cls, model: Any) -> None:
        """Raise TypeError for what has no mask token, and so is no denoiser, such as a module that makes logits."""
        if not hasattr(model, "mask_token_id"):
            raise TypeError(
                f"expected a MaskedDiffusionLM, got {type(model).__name__}: wrap it once, before the optimiser is "
                "made, with MaskedDiffusionLM.from_logits(model, mask_token_id), or from_hf for a Hugging Face model"
            )

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def is_hugging_face(self) -> bool:
        """Whether it was made from a Hugging Face model, and so has a folder format."""
        return bool(self._container)

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

    def get_input_embeddings(self) -> nn.Module | None:
        """The token embedding."""
        return self._container[0].get_input_embeddings() if self._container else None

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        """Put another token embedding in its place."""
        self._inside("set_input_embeddings").set_input_embeddings(embeddings)

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer that the masked head reads."""
        return self.head.output

    def set_output_embeddings(self, output: nn.Module) -> None:
        """Put another linear output layer in its place."""
        for model in self._container:
            model.set_output_embeddings(output)
        self.head.output = output

    def tie_weights(self, **options: Any) -> None:
        """Make those weights one again that the model's config ties."""
        for model in self._container:
            model.tie_weights(**options)

    @property
    def _tied_weights_keys(self) -> dict[str, str] | None:
        """Names of weights that are another one: that one's name."""
        names: dict[int, str] = {}
        tied = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            first = names.setdefault(id(parameter), name)
            if first != name:
                tied[name] = first
        return tied or None

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of layers that lie on one device, and are sharded and gathered as a whole."""
        return sorted(self._container[0]._no_split_modules or ()) if self._container else []

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether its layers can be run again in the backward instead of keeping what they computed."""
        return bool(self._container) and self._container[0].supports_gradient_checkpointing

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether they are."""
        return bool(self._container) and self._container[0].is_activation_checkpointing

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Run layers again in the backward, which costs a forward and saves the memory of what they compute.

        Args:
            activation_checkpointing_kwargs: to `torch.utils.checkpoint.checkpoint`.
            options: to the Hugging Face model's own method.

        Raises:
            ValueError: for a model that cannot.
        """
        model = self._inside("activation checkpointing")
        model.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Keep what layers compute."""
        self._inside("activation checkpointing").activation_checkpointing_disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    def _inside(self, what: str) -> PreTrainedModel:
        if not self._container:
            raise ValueError(f"{what} needs a Hugging Face model, and this one's backbone is not one")
        return self._container[0]

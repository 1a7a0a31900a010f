"""Addition of two numbers: data, and a model that begins knowing which digit stands where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from datasets import Dataset
from torch import nn

from unmask.data.arithmetic import MASK_TOKEN, VOCAB_SIZE, load_addition
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.parts.models import gpt2_config


@dataclass(frozen=True)
class AdditionData:
    """Pairs of numbers, half of them drawn to have a given carry chain."""

    digits: int = 8
    """Of both numbers."""
    rows: int = 200_000
    """Pairs to train on."""

    def load(self) -> Dataset:
        """The training pairs."""
        return load_addition("train", digits=self.digits, rows=self.rows)

    def held_out(self) -> Dataset:
        """Pairs of another split."""
        return load_addition("test", digits=self.digits, rows=64, seed=1)


@dataclass(frozen=True)
class AdditionModel:
    """A GPT-2 body of four layers.

    A position starts as the sum of a vector for its number and one for its place, a digit with its Fourier features
    mod 10 in it: without these, thousands of steps go by before the first digit is added.
    """

    digits: int = 8
    """Of both numbers, as in the data."""
    width: int = 128
    """Size of the hidden states."""

    def build(self) -> MaskedDiffusionLM:
        """The model with random weights."""
        length = 3 * self.digits + 3
        config = gpt2_config(VOCAB_SIZE, length, self.width, layers=4, heads=4, init_std=0.05)
        model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
        last = torch.tensor([self.digits - 1, self.digits, 2 * self.digits, 2 * self.digits + 1, length - 1])
        part = torch.searchsorted(last, torch.arange(length))  # of a, +, b, = and c
        place = last[part] - torch.arange(length)
        start = 0.6 * torch.randn(2, max(len(last), self.digits + 1), self.width)  # of parts, and of places in them
        angle = 2 * torch.pi * torch.outer(torch.arange(10), torch.arange(1, 6)) / 10
        waves = torch.cat([angle.cos(), angle.sin()], dim=1) @ torch.randn(10, self.width) / 10**0.5
        tokens, places = (cast(nn.Embedding, model.backbone.get_submodule(name)) for name in ("wte", "wpe"))
        with torch.no_grad():
            tokens.weight.normal_(std=1.0)
            tokens.weight[:10] = waves + 0.3 * tokens.weight[:10]
            places.weight.copy_(start[0][part] + start[1][place])
        return model

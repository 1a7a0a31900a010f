"""A tabular world as a model: everything that takes a MaskedDiffusionLM can be checked against a known joint."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from unmask.models.denoiser import MaskedDiffusionLM
from unmask.testing.tabular import TabularWorld


class _Table(nn.Module):
    """Looks the world's predictions up; hidden states are log-probabilities, the mask token's included."""

    place: Tensor

    def __init__(self, world: TabularWorld) -> None:
        super().__init__()
        size, self.length = world.vocab_size + 1, world.length
        every = torch.tensor(list(itertools.product(range(size), repeat=world.length)))
        masked = every == world.mask_token_id
        log_p = world.log_probabilities(every.masked_fill(masked, 0), masked)
        table = torch.cat([log_p, torch.zeros(*every.shape, 1, dtype=log_p.dtype)], 2)
        # A frozen parameter: a model's device and precision are read from its parameters.
        self.table = nn.Parameter(table, requires_grad=False)
        self.register_buffer("place", size ** torch.arange(world.length - 1, -1, -1), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object) -> SimpleNamespace:
        """Rows of the world's length, perhaps padded on the right."""
        code = (input_ids[:, : self.length] * self.place).sum(1)
        found = self.table[code]
        return SimpleNamespace(
            last_hidden_state=nn.functional.pad(found, (0, 0, 0, input_ids.shape[1] - self.length))
        )


def tabular_model(world: TabularWorld) -> MaskedDiffusionLM:
    """The world's denoiser as a model in float64, whose predictions are `world.log_probabilities`."""
    head = nn.Linear(world.vocab_size + 1, world.vocab_size + 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(world.vocab_size + 1))
    return MaskedDiffusionLM(_Table(world), head, world.mask_token_id)

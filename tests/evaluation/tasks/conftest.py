"""A model that knows the answers, for any task."""

import pytest
import torch
from torch import nn

from unmask import MaskedDiffusionLM


class _Oracle(nn.Module):
    """Hidden states are the one-hot tokens of the row whose given tokens these are."""

    def __init__(self, rows, answers, vocab_size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows, self.answers, self.vocab_size = rows, answers, vocab_size

    def forward(self, input_ids, attention_mask=None):
        found, width = [], input_ids.shape[1]
        for ids in input_ids:
            given = ~self.rows.maskable[:, :width] & self.rows.attention[:, :width]
            # A longer row may begin like this one, so rows must agree in what lies beyond, too.
            fits = ((self.rows.tokens[:, :width] == ids) | ~given).all(1) & ~self.rows.attention[:, width:].any(1)
            found.append(self.answers[fits.nonzero()[0, 0], :width])
        hidden = nn.functional.one_hot(torch.stack(found), self.vocab_size).float() * 50
        return type("Output", (), {"last_hidden_state": hidden})


@pytest.fixture(scope="session")
def oracle():
    """Build it from rows and their answers [n, L]."""

    def build(rows, answers, vocab_size, mask_token_id):
        head = nn.Linear(vocab_size, vocab_size, bias=False)
        with torch.no_grad():
            head.weight.copy_(torch.eye(vocab_size))
        return MaskedDiffusionLM(_Oracle(rows, answers, vocab_size), head, mask_token_id)

    return build

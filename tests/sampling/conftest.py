"""A small transformer with random weights, rows to decode, and what decoding passes through."""

import pytest
import torch
from transformers import LlamaConfig

from unmask import MaskedDiffusionLM, generate

V, MASK, L = 14, 13, 12


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return MaskedDiffusionLM.from_config(config, MASK).double()


@pytest.fixture(scope="module")
def ragged(token_batch):
    """Rows of different lengths with prompts of different lengths, and clues between."""

    def build(lengths, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, MASK, (len(lengths), L), generator=generator)
        position, length = torch.arange(L), torch.tensor(lengths)[:, None]
        attention = position < length
        maskable = attention & (torch.rand(tokens.shape, generator=generator) < 0.7)
        maskable &= position >= torch.randint(0, 4, (len(lengths), 1), generator=generator)
        return token_batch(tokens.masked_fill(~attention, 0), maskable, attention)

    return build


@pytest.fixture(scope="module")
def trajectory():
    """A function that decodes; it returns what was made, and the masks before the first and after each step."""

    def run(model, batch, decoding, **options):
        masks = [batch.maskable.clone()]
        made = generate(
            model, batch, decoding, on_step=lambda step, tokens, masked: masks.append(masked.clone()), **options
        )
        return made, masks

    return run

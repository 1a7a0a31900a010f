"""Any masking in a plain PyTorch loop, with a model that knows nothing of this library: addresses, letter by letter.

python examples/plain_loop.py --masking puma --steps 100
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from unmask import (
    ELBO,
    PPOTS,
    Bell,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
    TrainingStep,
)
from unmask.data import character_tokenizer, load_text

MASKINGS = {
    "uniform-count": (IndependentMasking(mask=ExactCount()), RowMean()),
    "bell": (IndependentMasking(Bell(), ExactCount(), "stratified"), MaskedMean()),
    "ppots": (IndependentMasking(PPOTS(25, grid=8, rows=8, masks=4), ExactCount()), ELBO()),
    "puma": (ProgressiveUnmasking(stages=8, threshold=0.9), RowMean()),
}
LENGTH, WIDTH = 64, 64


class Denoiser(nn.Module):
    """A plain transformer encoder: tokens [B, L] to logits [B, L, V]."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, vocab_size)

    def forward(self, tokens: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Logits of every position; padding is not attended to."""
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.output(self.body(hidden, src_key_padding_mask=~attention))


def main(masking: str = "puma", steps: int = 100, batch_size: int = 32) -> list[float]:
    """Train; returns the loss of every step."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(alphabet="27")
    rows = load_text("sotu", "train", tokenizer=tokenizer, length=LENGTH)
    config, objective = MASKINGS[masking]
    held_out = load_text("sotu", "validation", tokenizer=tokenizer, length=LENGTH)
    step = TrainingStep(config, rows, batch_size, objective=objective, held_out=held_out)
    model = MaskedDiffusionLM.from_logits(Denoiser(tokenizer.vocab_size), tokenizer.mask_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for number in range(steps):
        loss = step(model)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if number % 10 == 9:
            print(f"step {number + 1:4}  loss {sum(losses[-10:]) / 10:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masking", choices=MASKINGS, default="puma")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    main(**vars(parser.parse_args()))

"""Blocks: all in one forward over two copies of the row, or one forward for each block?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.harness import Table, interleaved, median_ms
from unmask import MaskedDiffusionLM

REPEATS = 3
WIDTH, LAYERS, VOCABULARY, TOKENS = 128, 2, 64, 1024
CASES = ((162, 1), (162, 9), (162, 27), (162, 81), (1024, 128), (1024, 512))
MOST_FORWARDS = 32
NOTE = """Forward and backward of the backbone, fp32, torch's fused attention with a dense mask, about the same number
of tokens at every length, half of them masked, every position maskable. "Together" is what `MaskedDiffusionLM`
does: the noisy and the clean copy of the row in one forward, as far as a prediction needs them. "Apart" is one
forward for each block: the clean blocks before it and its noisy self, up to {most} of them. "No blocks" is the noisy
row alone, ordinary masked diffusion. Blocks of one token are autoregression: a shifted read-out, the clean copy
alone."""


def measure(repeats: int) -> Table:
    torch.manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for length, size in CASES:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=WIDTH // 32, max_position_embeddings=length,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        model = MaskedDiffusionLM.from_config(config, VOCABULARY - 1, shifted=size == 1)
        count = max(1, TOKENS // length)
        clean = torch.randint(VOCABULARY - 1, (count, length))
        masked = torch.rand(clean.shape) < 0.5 if size > 1 else torch.ones_like(clean, dtype=torch.bool)
        masked[:, 0] = False
        noisy, real = clean.masked_fill(masked, VOCABULARY - 1), torch.ones_like(masked)
        block = (torch.arange(length) // size).expand(count, -1)

        def together(model=model, noisy=noisy, real=real, block=block, clean=clean, masked=masked) -> None:
            step(model, model.hidden(noisy, real, block, clean)[masked])

        def apart(model=model, noisy=noisy, real=real, block=block, clean=clean, masked=masked, size=size) -> None:
            found = []
            for b in range(int(block.max()) + 1):
                end = (b + 1) * size
                prefix = torch.where(block < b, clean, noisy)[:, :end]
                here = masked[:, :end] & (block[:, :end] == b)
                found.append(model.hidden(prefix, real[:, :end], block[:, :end])[here])
            step(model, torch.cat(found))

        def without(model=model, noisy=noisy, real=real, masked=masked) -> None:
            step(model, model.hidden(noisy, real)[masked])

        name = f"{length} {size}"
        calls |= {f"together {name}": together, f"without {name}": without}
        if length / size <= MOST_FORWARDS:
            calls[f"apart {name}"] = apart
    ms = {name: median_ms(values) for name, values in interleaved(calls, repeats).items()}
    rows = []
    for length, size in CASES:
        name = f"{length} {size}"
        together_ms, apart_ms = ms[f"together {name}"], ms.get(f"apart {name}")
        rows.append(
            {
                "row length": length,
                "block": size,
                "no blocks, ms": ms[f"without {name}"],
                "together, ms": together_ms,
                "apart, ms": "-" if apart_ms is None else apart_ms,
                "together / no blocks": together_ms / ms[f"without {name}"],
                "apart / together": "-" if apart_ms is None else apart_ms / together_ms,
            }
        )
    settings = {"tokens": TOKENS, "width": WIDTH, "layers": LAYERS}
    return Table(settings, rows, NOTE.format(most=MOST_FORWARDS))


def step(model: MaskedDiffusionLM, hidden: Tensor) -> None:
    """Backward of a loss that reaches every masked state."""
    hidden.square().mean().backward()
    model.zero_grad(set_to_none=True)

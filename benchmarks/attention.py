"""At which row length does torch's fused attention overtake plain products?"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Table, interleaved, median_ms
from unmask.models.attention import plain_attention

REPEATS = 7
TOKENS, WIDTH, HEAD = 4096, 256, 64
LENGTHS = (81, 162, 256, 384, 512, 640, 768, 1024)
DTYPES = (torch.bfloat16, torch.float32)
NOTE = """Forward and backward of attention alone, heads of 64, about the same number of tokens at every length. This
is where the setting `attention: "auto"` takes its crossing from."""


def measure(repeats: int) -> Table:
    heads = WIDTH // HEAD
    calls = {}
    for dtype in DTYPES:
        for length in LENGTHS:
            shape = (max(1, TOKENS // length), heads, length, HEAD)
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            upstream = torch.randn(shape, dtype=dtype)

            def plain(q=q, k=k, v=v, upstream=upstream):
                out, _ = plain_attention(nn.Identity(), q, k, v, None)
                torch.autograd.grad(out, (q, k, v), upstream.transpose(1, 2))

            def fused(q=q, k=k, v=v, upstream=upstream):
                torch.autograd.grad(scaled_dot_product_attention(q, k, v), (q, k, v), upstream)

            calls |= {f"plain {dtype} {length}": plain, f"fused {dtype} {length}": fused}
    ms = {name: median_ms(values) for name, values in interleaved(calls, repeats).items()}
    rows = []
    for dtype in DTYPES:
        for length in LENGTHS:
            plain_ms, fused_ms = ms[f"plain {dtype} {length}"], ms[f"fused {dtype} {length}"]
            shown = {"precision": str(dtype).removeprefix("torch."), "row length": length}
            rows.append(shown | {"plain, ms": plain_ms, "fused, ms": fused_ms, "fused / plain": fused_ms / plain_ms})
    return Table({"tokens": TOKENS, "heads": heads, "head size": HEAD}, rows, NOTE)

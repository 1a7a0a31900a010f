"""What share of the machine's own rate of bf16 matrix products does a training step reach?"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Table, interleaved, median_ms
from benchmarks.steps import Size, ours

REPEATS = 6
SIZES = {
    "d 256": Size(layers=6, width=256, inner=768, heads=4, vocabulary=8192, length=162, batch=16),
    "d 512": Size(layers=6, width=512, inner=1536, heads=8, vocabulary=8192, length=162, batch=16),
    "d 1024": Size(layers=3, width=1024, inner=3072, heads=16, vocabulary=8192, length=162, batch=16),
}
SQUARE, CALLS = 2048, 8
NOTE = """Operations are those of the matrix products of forward and backward, counted by torch. The rate of the
machine is that of products of square bf16 matrices, measured in turn with the steps. On a processor without bf16
the step runs in fp32, and the share says little."""


def measure(repeats: int) -> Table:
    one, other = torch.randn(2, SQUARE, SQUARE).bfloat16().unbind()
    steps = {name: ours(size)[0] for name, size in SIZES.items()}
    operations = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        operations[name] = counter.get_total_flops()

    def products() -> None:
        for _ in range(CALLS):
            one @ other

    seconds = interleaved({"matrix product": products, **steps}, repeats)
    operations["matrix product"] = CALLS * 2 * SQUARE**3
    rate = {name: operations[name] / (1e6 * median_ms(values)) for name, values in seconds.items()}
    rows = [
        {
            "run": f"step, {name}" if name in steps else name,
            "operations, 1e9": operations[name] / 1e9,
            "ms": median_ms(values),
            "rate, 1e9/s": rate[name],
            "share": rate[name] / rate["matrix product"],
        }
        for name, values in seconds.items()
    ]
    return Table({name: asdict(size) for name, size in SIZES.items()}, rows, NOTE)

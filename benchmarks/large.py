"""What do time and memory come to with a vocabulary of 151,645 tokens (the paper's 125M model)?"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.harness import Table, in_processes, median_ms
from benchmarks.steps import Size, ours, reference

REPEATS, SETTLE = 4, 3
SIZE = Size(layers=14, width=512, inner=1536, heads=8, vocabulary=151_645, length=512, batch=4, prompt=0, tied=True)
NOTE = """GiB is how far the resident memory of the process rises, at its peak, above what it holds before the first
step (weights included) plus gradients and AdamW's two moments, 12 bytes a weight. The kernel keeps this peak for each
process; it counts everything, also what an allocator keeps and what libraries allocate at first use."""


def measure(repeats: int) -> Table:
    variants = {"reference, bf16": (reference, SIZE, True), "unmask, bf16": (ours, SIZE, "bf16")}
    seconds, _, peaks = in_processes(variants, repeats, SETTLE)
    ms = {name: median_ms(values) for name, values in seconds.items()}
    best, least = ms["unmask, bf16"], peaks["unmask, bf16"]
    rows = [
        {
            "step": name,
            "ms": ms[name],
            "time / unmask": ms[name] / best,
            "peak above state, GiB": peaks[name] / 2**30,
            "memory / unmask": peaks[name] / least,
        }
        for name in ms
    ]
    return Table(asdict(SIZE), rows, NOTE)

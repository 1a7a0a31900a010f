"""How fast is a training step of the paper's Sudoku model, against a plain one?"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.harness import Table, in_processes, median_ms
from benchmarks.steps import Size, ours, reference

REPEATS, SETTLE = 8, 15
SIZE = Size(layers=8, width=256, inner=768, heads=8, vocabulary=16, length=162, batch=32, prompt=81)
NOTE = """Whole steps: masks, forward, backward, clipping, AdamW. The reference takes a log-softmax of all positions
and the attention that transformers chooses; ours is the trainer's step with the log's figures at every step. Each
variant runs in a process of its own, in turn with the others, after as many steps as it takes to settle. `warm-up`
is what the first step took, in which layers are compiled; less where torch has compiled the same before. Runs that
are long enough to gain by it compile by themselves."""


def measure(repeats: int) -> Table:
    variants = {
        "reference, fp32": (reference, SIZE, False),
        "reference, bf16": (reference, SIZE, True),
        "unmask, fp32": (ours, SIZE, "fp32"),
        "unmask, bf16": (ours, SIZE, "bf16"),
        "unmask, bf16, compiled": (ours, SIZE, "bf16", True),
    }
    seconds, first, _ = in_processes(variants, repeats, SETTLE)
    ms = {name: median_ms(values) for name, values in seconds.items()}
    ours_ms = ms["unmask, bf16"]
    rows = [
        {"step": name, "ms": value, "rows/s": 1e3 * SIZE.batch / value, "time / unmask bf16": value / ours_ms}
        | {"warm-up, s": first[name]}
        for name, value in ms.items()
    ]
    return Table(asdict(SIZE), rows, NOTE)

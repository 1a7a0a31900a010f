"""What share of the machine's own rate of bf16 matrix products does a training step reach?"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Table, interleaved, median_ms
from benchmarks.steps import Size, Step, ours

REPEATS, SETTLE = 6, 6
SIZES = {
    "d 256": Size(layers=6, width=256, inner=768, heads=4, vocabulary=8192, length=162, batch=16),
    "d 512": Size(layers=6, width=512, inner=1536, heads=8, vocabulary=8192, length=162, batch=16),
    "d 1024": Size(layers=3, width=1024, inner=3072, heads=16, vocabulary=8192, length=162, batch=16),
}
SQUARE, CALLS = 2048, 8
NOTE = """Operations are those of the matrix products of forward and backward, counted by torch. The rate of the
machine is that of products of square bf16 matrices, measured in turn with the steps. `products` are those of the
layers' weights alone, forward and backward, on tensors that are there already: about what a step would reach whose
other work cost nothing. On a processor without bf16 the step runs in fp32, and the share says little."""


def products(size: Size) -> tuple[Step, int]:
    """The products of a step with the layers' weights, and nothing else; and how many operations they take."""
    rows, wide, inner = size.batch * size.length, size.width, size.inner
    shapes = [(wide, wide)] * 4 + [(wide, inner)] * 2 + [(inner, wide)]
    given = [(torch.randn(rows, i), torch.randn(o, i), torch.randn(rows, o)) for i, o in shapes]
    given = [tuple(x.bfloat16() for x in some) for some in given]

    def run() -> None:
        for _ in range(size.layers):
            for x, weight, gradient in given:
                x @ weight.T
                gradient @ weight
                gradient.T @ x

    return run, size.layers * sum(6 * rows * i * o for i, o in shapes)


def measure(repeats: int) -> Table:
    one, other = torch.randn(2, SQUARE, SQUARE).bfloat16().unbind()
    runs, operations = {}, {}
    for name, size in SIZES.items():
        step = ours(size)[0]
        with FlopCounterMode(display=False) as counter:
            step()
        alone, count = products(size)
        runs |= {f"step, {name}": step, f"products, {name}": alone}
        operations |= {f"step, {name}": counter.get_total_flops(), f"products, {name}": count}
        compiled = f"step, {name}, compiled"
        runs[compiled] = ours(size, compiled=True)[0]
        operations[compiled] = operations[f"step, {name}"]

    def square() -> None:
        for _ in range(CALLS):
            one @ other

    seconds = interleaved({"square product": square, **runs}, repeats, SETTLE)
    operations["square product"] = CALLS * 2 * SQUARE**3
    rate = {name: operations[name] / (1e6 * median_ms(values)) for name, values in seconds.items()}
    rows = [
        {
            "run": name,
            "operations, 1e9": operations[name] / 1e9,
            "ms": median_ms(values),
            "rate, 1e9/s": rate[name],
            "share": rate[name] / rate["square product"],
        }
        for name, values in seconds.items()
    ]
    return Table({name: asdict(size) for name, size in SIZES.items()}, rows, NOTE)

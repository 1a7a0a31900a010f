"""How fast is a training step on a GPU, and how much of its memory does it take, against a plain one?

python -m benchmarks.gpu        # says so and ends where there is no CUDA device

Before anything is measured, the tests run that need a GPU.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import harness, large, step
from benchmarks.heads import LIGER, heads
from benchmarks.steps import Step, ours, reference

REPEATS = 20
WARM = 5
SIZES = {
    "puzzles": replace(step.SIZE, batch=512),
    "large vocabulary": replace(large.SIZE, batch=32),
}
VARIANTS = {
    "reference, bf16": lambda size: reference(size, True),
    "unmask, fp32": lambda size: ours(size, "fp32"),
    "unmask, bf16": lambda size: ours(size, "bf16"),
    "unmask, bf16, compiled": lambda size: ours(size, "bf16", compiled=True),
}
NOTE = """Whole steps, one variant after the other. Memory is the peak of torch's allocator in a step above what lies
there between steps (weights, optimiser). "Output layer" is that of the large vocabulary alone, forward and
backward; its ratios are to ours with scores."""


def check() -> None:
    """Run the tests that need a GPU, and end where one fails."""
    root = Path(__file__).parents[1]
    code = subprocess.call([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(root / "tests")], cwd=root)
    if code:
        sys.exit(f"the tests that need a GPU ended with {code}: nothing is measured")


def measure(repeats: int) -> harness.Table:
    """Every variant at every size.

    Raises:
        RuntimeError: where there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device, so nothing is measured")
    rows = []
    for name, size in SIZES.items():
        found = {variant: _measured(build(size)[0], repeats) for variant, build in VARIANTS.items()}
        best, least = found["unmask, bf16"]
        for variant, (ms, memory) in found.items():
            rows.append(
                {
                    "size": name,
                    "step": variant,
                    "ms": ms,
                    "rows/s": 1e3 * size.batch / ms,
                    "time / unmask bf16": ms / best,
                }
                | {"peak, GiB": memory / 2**30, "memory / unmask bf16": memory / least}
            )
    alone = {name: _measured(call, repeats) for name, call in heads(SIZES["large vocabulary"], "cuda").items()}
    best, least = alone["unmask, loss and confidence"]
    for name, (ms, memory) in alone.items():
        rows.append(
            {"size": "output layer", "step": name, "ms": ms, "rows/s": 1e3 * SIZES["large vocabulary"].batch / ms}
            | {"time / unmask bf16": ms / best, "peak, GiB": memory / 2**30, "memory / unmask bf16": memory / least}
        )
    settings: dict[str, dict[str, object]] = {name: asdict(size) for name, size in SIZES.items()}
    return harness.Table(settings | {"device": torch.cuda.get_device_name()}, rows, NOTE)


def _measured(call: Step, repeats: int) -> tuple[float, int]:
    """Median milliseconds of a step, and the bytes that it needs for a moment."""
    seconds = []
    for turn in range(WARM + repeats):
        if turn == WARM:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if turn >= WARM:
            seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds), torch.cuda.max_memory_allocated() - before


def main() -> None:
    try:
        if torch.cuda.is_available():
            check()
        table = measure(REPEATS)
    except RuntimeError as error:
        sys.exit(str(error))
    if not LIGER:
        print("liger-kernel is not installed, so its fused cross-entropy is not among the output layers")
    question = str(__doc__).splitlines()[0]
    print(harness.record("gpu", question, table, REPEATS, Path(__file__).parent / "results"))


if __name__ == "__main__":
    main()

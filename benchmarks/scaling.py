"""How does a training step grow with rows, row length, vocabulary and layers?"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from benchmarks.harness import Table, interleaved, median_ms
from benchmarks.steps import Size, ours

REPEATS = 3
BASE = Size(layers=4, width=256, inner=768, heads=4, vocabulary=4096, length=128, batch=8)
AXES = {
    "batch": (8, 16, 32),
    "length": (128, 256, 512),
    "vocabulary": (4096, 16384, 65536),
    "layers": (4, 8, 16),
}
NOTE = """The slope is that of a straight line through log(time) against log(size): 1 is growth in proportion, below 1
is a fixed share that does not grow. Attention makes the slope in length rise above 1 for long rows."""


def measure(repeats: int) -> Table:
    sizes = {(axis, value): replace(BASE, **{axis: value}) for axis, values in AXES.items() for value in values}
    steps = {size: ours(size)[0] for size in set(sizes.values())}
    seconds = interleaved({str(size): step for size, step in steps.items()}, repeats)
    rows = []
    for axis, values in AXES.items():
        ms = [median_ms(seconds[str(sizes[axis, value])]) for value in values]
        slope = float(np.polyfit(np.log(values), np.log(ms), 1)[0])
        shown = {f"{size} of 3, ms": found for size, found in zip(("smallest", "middle", "largest"), ms, strict=True)}
        rows.append({"axis": axis, "sizes": ", ".join(map(str, values)), **shown, "slope": slope})
    return Table(asdict(BASE), rows, NOTE)

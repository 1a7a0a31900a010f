"""What does fetching rows cost, as a share of a training step?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict

import numpy as np
from datasets import Dataset, load_from_disk

from benchmarks import step
from benchmarks.harness import Table, interleaved, median_ms
from benchmarks.steps import Size, ours
from unmask import RowStream

REPEATS = 8
SIZES = {
    "puzzles": step.SIZE,
    "text": Size(layers=6, width=512, inner=1536, heads=8, vocabulary=8192, length=512, batch=8),
}
ROWS = 20_000
NOTE = """Rows come from a file that is mapped into memory, in a shuffled order; uneven rows have from half of the
length to all of it, and are padded. A step that ran while the next one's rows are fetched and masked could gain at
most this share and that of the masks (case `masking`)."""


def _rows(size: Size, even: bool) -> Dataset:
    generator = np.random.default_rng(0)
    lengths = generator.integers(size.length if even else size.length // 2, size.length + 1, ROWS)
    tokens = [generator.integers(0, size.mask_token, n) for n in lengths]
    return Dataset.from_dict({"tokens": tokens, "maskable": [np.ones(n, bool) for n in lengths]})


def measure(repeats: int) -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            streams = {}
            for kind in ("even", "uneven"):
                _rows(size, kind == "even").save_to_disk(f"{folder}/{name}-{kind}")
                streams[kind] = RowStream(load_from_disk(f"{folder}/{name}-{kind}"))
            calls = {k: lambda stream=s, n=size.batch: stream.take(n) for k, s in streams.items()}
            ms = {k: median_ms(v) for k, v in interleaved({"step": ours(size)[0], **calls}, repeats).items()}
            for kind in streams:
                shown = {"rows": f"{name}, {kind}", "batch": size.batch, "length": size.length, "ms": ms[kind]}
                rows.append(shown | {"step, ms": ms["step"], "share of a step, %": 100 * ms[kind] / ms["step"]})
    return Table({name: asdict(size) for name, size in SIZES.items()}, rows, NOTE)

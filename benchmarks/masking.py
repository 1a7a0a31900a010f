"""What does drawing masks cost, as a share of a training step?"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, replace

import torch

from benchmarks.harness import Table
from benchmarks.step import SIZE
from unmask import (
    PPOTS,
    Bell,
    Bernoulli,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    RowImportance,
    RowMean,
    RowStream,
)
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.processes.independent import COUPLINGS
from unmask.training.platform import autocast_dtype, keep_freed_memory

REPEATS = 12
NOTE = """The step is that of the paper's Sudoku model, in bf16 where the processor has it: {step:.0f} ms. Every
masking draws (and, where it wants scores, observes) in turn with training steps, in one process."""


def maskings() -> dict[str, object]:
    found: dict[str, object] = {}
    for rule in (Bernoulli(), ExactCount()):
        for coupling in COUPLINGS:
            for pair in (None, "mirror", "complement"):
                name = f"{type(rule).__name__}, {coupling}{f', {pair}' if pair else ''}"
                found[name] = IndependentMasking(mask=rule, coupling=coupling, pair=pair)
    found["Bell, ExactCount, stratified"] = IndependentMasking(Bell(), ExactCount(), "stratified")
    fitted = IndependentMasking(PPOTS(), ExactCount(), "stratified", "mirror")
    found["P-POTS, ExactCount, stratified, mirror"] = fitted
    for pool in ("batch", 4096):
        name = f"PUMA, K 8, threshold 0.9, pool {pool} (draw and observe)"
        found[name] = ProgressiveUnmasking(threshold=0.9, pool=pool)
    return found


def measure(repeats: int) -> Table:
    keep_freed_memory()
    size = replace(SIZE, vocabulary=VOCAB_SIZE)
    config = size.config
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)
    dtype, objective = autocast_dtype("auto", torch.device("cpu")), RowMean()
    data = load_sudoku("train", form="pair", limit=8000)
    processes = {name: masking.start(RowStream(data), size.batch) for name, masking in maskings().items()}
    processes["uniform, Bernoulli, rows by importance (draw and observe)"] = IndependentMasking().start(
        RowStream(data, importance=RowImportance()), size.batch
    )
    steps: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in processes}
    for turn in range(repeats + 1):
        for name, process in processes.items():
            began = time.perf_counter()
            batch = process.draw()
            drawn = time.perf_counter() - began
            if process.needs is not None:
                with torch.no_grad():
                    scores = model(batch, needs=process.needs).scores
                began = time.perf_counter()
                process.observe(scores)
                drawn += time.perf_counter() - began
            costs[name].append(drawn)
        weights = objective.weights(batch) / objective.normaliser(batch).float()
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(batch, weights, needs=("log_confidence",)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if turn:
            steps.append(time.perf_counter() - began)
    step = statistics.median(steps)
    rows = []
    for name, values in costs.items():
        drawn = statistics.median(values[1:])
        rows.append({"masking": name, "ms": 1e3 * drawn, "share of a step, %": 100 * drawn / step})
    return Table(asdict(size), rows, NOTE.format(step=1e3 * step))

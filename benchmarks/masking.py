"""What does drawing masks cost, as a share of a training step?

    python benchmarks/masking.py           # about two minutes; writes benchmarks/masking.json and masking.md

The step is the paper's Sudoku model: 8 layers, d 256, 162 tokens, 32 rows, bf16 where the machine has it. Every
masking draws (and PUMA observes) in turn, interleaved with training steps, in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

import unmask
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

ROWS, REPEATS = 32, 30


def maskings() -> dict[str, object]:
    found: dict[str, object] = {}
    for rule in (Bernoulli(), ExactCount()):
        for coupling in COUPLINGS:
            for mirror in (False, True):
                name = f"{type(rule).__name__}, {coupling}{', mirror' if mirror else ''}"
                found[name] = IndependentMasking(mask=rule, coupling=coupling, mirror=mirror)
    found["Bell, ExactCount, stratified"] = IndependentMasking(Bell(), ExactCount(), "stratified")
    found["P-POTS, ExactCount, stratified, mirror"] = IndependentMasking(PPOTS(), ExactCount(), "stratified", True)
    found["PUMA, K 8, threshold 0.9 (draw and observe)"] = ProgressiveUnmasking(threshold=0.9)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=162,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)
    dtype, objective = autocast_dtype("auto", torch.device("cpu")), RowMean()
    data = load_sudoku("train", form="pair", limit=4000)
    processes = {name: masking.start(RowStream(data), ROWS) for name, masking in maskings().items()}
    with_importance = RowStream(data, importance=RowImportance())
    processes["uniform, Bernoulli, rows by importance (draw and observe)"] = IndependentMasking().start(
        with_importance, ROWS
    )
    steps: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(options.repeats):
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
        steps.append(time.perf_counter() - began)

    step = statistics.median(steps)
    rows = {name: statistics.median(values) for name, values in costs.items()}
    record = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": options.threads},
        "versions": {"unmask": unmask.__version__, "torch": torch.__version__},
        "step_ms": 1e3 * step,
        "masking_ms": {name: 1e3 * seconds for name, seconds in rows.items()},
        "share_of_step": {name: seconds / step for name, seconds in rows.items()},
    }
    here = Path(__file__).with_suffix("")
    here.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [f"Training step: {1e3 * step:.0f} ms (median of {options.repeats}).", "", "| masking | ms | share |"]
    lines += ["|---|---|---|", *(f"| {n} | {1e3 * s:.2f} | {s / step:.2%} |" for n, s in rows.items())]
    here.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

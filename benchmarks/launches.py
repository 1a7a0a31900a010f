"""How many operations does a step give a device beside the model's own, and how often does the host wait for it?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig

from benchmarks.harness import Table
from unmask import MaskedDiffusionLM, Trainer, TrainingConfig
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.parts.maskings import MASKINGS
from unmask.testing.launches import count_launches, counting_device

REPEATS = 1
ARMS = ("standard", "bell", "puma")
SIZE = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 2}
SETTINGS = {"batch_size": 8, "log_every": 1000, "precision": "fp32", "tracker": "none"}
NOTE = """Counted by a dispatch mode on a simulated device (`unmask.testing.launches`), so the figures are exact and
the same on every machine. Sizes do not change them; more layers add to the model's operations alone. A step of the
trainer is set against forwards, backwards, clipping and a fused AdamW on the same rows. The host waits for the scores
where chains are to move on, and for nothing else."""


def measure(repeats: int) -> Table:
    rows = []
    for name in ARMS:
        for parts in (1, 4):
            with counting_device() as device:
                torch.manual_seed(0)
                model = MaskedDiffusionLM.from_config(LlamaConfig(vocab_size=VOCAB_SIZE, **SIZE), MASK_TOKEN)
                config = TrainingConfig(micro_batch_size=SETTINGS["batch_size"] // parts, **SETTINGS)
                trainer = Trainer(
                    model.to(device.device),
                    MASKINGS[name].masking,
                    load_sudoku("train", limit=64),
                    MASKINGS[name].objective,
                    config,
                    out=Path(tempfile.gettempdir()) / "unmask-benchmark",  # nothing is written without `train`
                    optimizer=lambda groups: torch.optim.AdamW(groups, fused=True),  # as on CUDA
                )
                found = count_launches(trainer, device)
            rows.append(
                {"masking": name, "micro-batches": parts, "operations": found.operations, "model's": found.model}
                | {"masking's": found.masking, "waits": len(found.waits)}
            )
    return Table({**SIZE, **SETTINGS}, rows, NOTE)

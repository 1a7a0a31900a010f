"""How much do consecutive gradients repeat one another? Cosine between the gradients of steps i and i + d.

    python -m experiments.pool.gradients

Training as in study.py; from step 100 on the gradients of 64 steps are kept. What all steps share (the direction of
training) shows for standard masking too; what is above it comes from rows that come back. Writes gradients.json.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from experiments.pool.study import base, control
from unmask import TrainingStep

DISTANCES = range(1, 33)
FROM, KEPT = 100, 64
ARMS = ("uniform-count", "repeated-batch", "repeated-pool", "chain-batch", "chain-pool")


def cosines(masking, seed: int) -> list[float]:
    """Mean cosine for each distance."""
    config = replace(base.training, steps=800, warmup_steps=32)
    torch.manual_seed(seed)
    model, kept = base.model.build(), []
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, betas=(config.beta1, config.beta2))
    step = TrainingStep(masking, base.data.load(), config.batch_size, objective=base.objective, seed=seed)
    for number in range(FROM + KEPT):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        step(model)
        if number >= FROM:
            flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            kept.append(flat / flat.norm())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    every = torch.stack(kept)
    product = every @ every.T
    return [float(product.diagonal(d).mean()) for d in DISTANCES]


def main() -> None:
    """Measure every arm."""
    torch.set_num_threads(1)
    arms = {cell.arm: cell.config.masking for cell in control.cells(arms=ARMS, seeds=[1])}
    found = {}
    for name, masking in arms.items():
        found[name] = [cosines(masking, seed) for seed in (1, 2)]
        print(name, [round(sum(values) / 2, 3) for values in zip(*found[name], strict=True)][::4], flush=True)
    out = {"distances": list(DISTANCES), "from": FROM, "kept": KEPT, "cosines": found}
    Path(__file__).with_name("gradients.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()

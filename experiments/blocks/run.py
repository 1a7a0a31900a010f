"""Does it pay to grow the blocks of block diffusion during training? Text, blocks of 16, with and without PUMA.

    python -m experiments.blocks.run --seed 1 2 3

Every arm ends with blocks of 16 characters; the curricula begin with blocks of one, autoregression, and of four.
Every run appends one line to records.jsonl: its learning curve in nats per character (block ELBO, common noise),
and at the end that number on more rows, beside the exact likelihoods of decoding each block by confidence and
from left to right. `report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common import append, loop
from unmask import (
    Blockwise,
    ExactCount,
    IndependentMasking,
    LikelihoodConfig,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    RowMean,
    Trainer,
    TrainingConfig,
)
from unmask.config import to_json
from unmask.data import character_tokenizer, load_text
from unmask.evaluation.exact import order_likelihood
from unmask.evaluation.likelihood import likelihood
from unmask.parts.text import first_token_given
from unmask.recipes import TextModel
from unmask.runs.config import load_model
from unmask.store.metrics import read_metrics

BLOCK, LENGTH = 16, 128
INDEPENDENT = IndependentMasking(mask=ExactCount())
PUMA = ProgressiveUnmasking(stages=8, threshold=0.9)


def arms(steps: int) -> dict[str, Blockwise]:
    """Fixed blocks, and blocks that grow over the first three tenths."""
    growing = ((0, 1), (round(0.15 * steps), 4), (round(0.3 * steps), BLOCK))
    return {
        "fixed": Blockwise(INDEPENDENT, BLOCK),
        "growing": Blockwise(INDEPENDENT, growing),
        "puma": Blockwise(PUMA, BLOCK),
        "puma-growing": Blockwise(PUMA, growing),
    }


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and evaluate one run; return its record."""
    tokenizer = character_tokenizer(alphabet="27")
    rows, unseen = (
        # The first position has no predecessor in the row: it is given.
        first_token_given(load_text("sotu", split, tokenizer=tokenizer, length=LENGTH))
        for split in ("train", "validation")
    )
    unseen = unseen.select(np.random.default_rng(0).permutation(len(unseen) - 1)[:256])
    curve_rows = unseen.select(range(64))
    noise = LikelihoodConfig(
        Blockwise(IndependentMasking(mask=ExactCount(), coupling="stratified"), BLOCK), samples=2
    )

    def evaluate(model: MaskedDiffusionLM, last: bool) -> dict[str, Any]:
        return {"loss": likelihood(model, curve_rows, noise).nats_per_token.value}

    training = TrainingConfig(batch_size=16, learning_rate=2e-3, **loop(steps, seed))
    torch.manual_seed(seed)
    masking = arms(steps)[arm]
    model = TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, shifted=True).build()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        trainer = Trainer(model, masking, rows, RowMean(), training, out=out, evaluate=evaluate, name=f"{arm} {seed}")
        model = load_model(trainer.train())
        curve = [{k: point[k] for k in ("step", "seconds", "loss")} for point in read_metrics(out, "evaluation")]
    found = {"block ELBO": likelihood(model, unseen, noise)}
    for policy in ("confidence", "left_to_right"):
        found[policy] = order_likelihood(model, unseen, policy, block_size=BLOCK)
    nats = {name: value.nats_per_token.value for name, value in found.items()}
    head = {"arm": arm, "masking": to_json(masking), "seed": seed, "steps": steps, "rows": len(unseen)}
    return {**head, "nats": nats, "curve": curve}


def main() -> None:
    """Run arms, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", nargs="+", default=list(arms(1000)), choices=arms(1000))
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    for seed in args.seed:
        for arm in args.arm:
            record = train(arm, seed, args.steps)
            append(Path(__file__).parent / "records.jsonl", record)
            print(
                arm, seed, args.steps, {name: round(value, 3) for name, value in record["nats"].items()}, flush=True
            )


if __name__ == "__main__":
    main()

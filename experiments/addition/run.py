"""Does PUMA hurt the hard tail? Five-digit addition by length of the carry chain, under four decoding orders.

    python -m experiments.addition.run --arm standard puma puma-until mix --seed 1 2 3

A pair whose carry runs through all its digits needs the sum's digits from right to left; a model trained along
its own confidence may never practise that (The Confidence Shortcut, arXiv 2605.29123). Every run appends one line
to records.jsonl: its learning curve and, at the end, right answers by decoding policy and carry chain.
`report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GPT2Config

from experiments.common import append, loop
from unmask import ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean, Trainer, TrainingConfig
from unmask.config import to_json
from unmask.data.arithmetic import MASK_TOKEN, VOCAB_SIZE, load_addition
from unmask.evaluation.speedup import Arm
from unmask.evaluation.tasks import AdditionTask
from unmask.processes import Masking, Mixture, ProgressiveUnmasking
from unmask.runs.config import load_model
from unmask.sampling import Decoding

DIGITS, WIDTH = 5, 128
STANDARD = IndependentMasking(mask=ExactCount())
PUMA = ProgressiveUnmasking(stages=DIGITS + 1, threshold=0.9)
ARMS: dict[str, Masking] = {
    "standard": STANDARD,
    "puma": ProgressiveUnmasking(stages=DIGITS + 1),
    "puma-tau": PUMA,
    "mix": Mixture(PUMA, STANDARD, share=0.25),
}
POLICIES = ("confidence", "random", "left_to_right", "right_to_left")


def build() -> MaskedDiffusionLM:
    """A GPT-2 body of four layers.

    A position starts as the sum of a vector for its number and one for its place, a digit with its Fourier features
    mod 10 in it: without these, thousands of steps go by before the first digit is added.
    """
    length = 3 * DIGITS + 3
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=length,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        activation_function="gelu",
        initializer_range=0.05,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = MaskedDiffusionLM.from_config(config, MASK_TOKEN)
    last = torch.tensor([DIGITS - 1, DIGITS, 2 * DIGITS, 2 * DIGITS + 1, length - 1])  # of a, +, b, = and c
    part = torch.searchsorted(last, torch.arange(length))
    place = last[part] - torch.arange(length)
    start = 0.6 * torch.randn(2, DIGITS + 1, WIDTH)
    angle = 2 * torch.pi * torch.outer(torch.arange(10), torch.arange(1, 6)) / 10
    waves = torch.cat([angle.cos(), angle.sin()], dim=1) @ torch.randn(10, WIDTH) / 10**0.5
    tokens, places = (cast(nn.Embedding, model.backbone.get_submodule(name)) for name in ("wte", "wpe"))
    with torch.no_grad():
        tokens.weight.normal_(std=1.0)
        tokens.weight[:10] = waves + 0.3 * tokens.weight[:10]
        places.weight.copy_(start[0][part] + start[1][place])
    return model


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and evaluate one run; return its record."""
    task = AdditionTask(digits=DIGITS, puzzles=200)
    training = TrainingConfig(batch_size=96, learning_rate=2e-3, **loop(steps, seed))
    torch.manual_seed(seed)
    rows = load_addition("train", digits=DIGITS, rows=200_000)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        trainer = Trainer(
            build(), ARMS[arm], rows, RowMean(), training, out=out, evaluate=task.start(), name=f"{arm} {seed}"
        )
        model = load_model(trainer.train())
        curve = [{k: point[k] for k in ("step", "seconds", "solved", "loss")} for point in Arm.load(out).curve]
    # Pairs by the length of their carry chain, each length equally often.
    unseen = load_addition("test", digits=DIGITS, rows=1200, seed=1, carry=(0, DIGITS))
    found = {}
    for policy in POLICIES:
        with torch.autocast("cpu", torch.bfloat16):
            result = replace(task, decoding=Decoding(policy)).evaluate(model, unseen)
        found[policy] = {"solved": result["solved"], "strata": {k: v["solved"] for k, v in result["strata"].items()}}
    head = {"arm": arm, "masking": to_json(ARMS[arm]), "seed": seed, "steps": steps}
    return {**head, "pairs": len(unseen), "policies": found, "curve": curve}


def main() -> None:
    """Run arms, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    for seed in args.seed:
        for arm in args.arm:
            record = train(arm, seed, args.steps)
            append(Path(__file__).parent / "records.jsonl", record)
            print(arm, seed, args.steps, {p: round(found["solved"], 3) for p, found in record["policies"].items()})


if __name__ == "__main__":
    main()

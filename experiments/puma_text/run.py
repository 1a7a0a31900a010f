"""Does PUMA reach right answers sooner, from scratch and from an AR model? Figure 1 of arXiv 2602.10314, small.

    python -m experiments.puma_text.run --pretrain
    python -m experiments.puma_text.run --arm standard puma standard-ar puma-ar --seed 1 2 3

Questions are chain sums of reasoning-gym; the answer works them out step by step. The autoregressive model is trained
on the same questions, then its causal mask is dropped and its read-out stays shifted. Every run appends one line to
records.jsonl: share of right answers to unseen questions against steps and seconds. `report.py` draws the curves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments import causal, questions
from experiments.common import append, loop
from unmask import ExactCount, IndependentMasking, RowMean, Trainer, TrainingConfig, from_pretrained
from unmask.config import to_json
from unmask.data.documents import split_of
from unmask.evaluation.tasks import AnswerTask
from unmask.processes import Masking, ProgressiveUnmasking
from unmask.recipes import TextModel
from unmask.sampling import Decoding
from unmask.store.metrics import read_metrics

HERE, RUNS = Path(__file__).parent, Path("runs") / "puma_text"
MASKINGS: dict[str, Masking] = {
    "standard": IndependentMasking(mask=ExactCount()),
    "puma": ProgressiveUnmasking(stages=12, threshold=0.9),
}
ARMS = {f"{masking}{suffix}": masking for suffix in ("", "-ar") for masking in MASKINGS}
"""The name of an arm is its masking's, with -ar where it starts from the autoregressive model."""
TERMS = 4
LENGTH = sum(questions.lengths(TERMS)) + 1
TRAINED = {"batch_size": 64, "learning_rate": 2e-3}
ROWS = 100_000
"""Questions that are made, a tenth of which no arm is trained on: the question alone decides."""


def size() -> TextModel:
    """The model of all arms."""
    tokenizer = questions.alphabet()
    return TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, positions=LENGTH)


def examples(split: str) -> list[dict[str, str]]:
    """Questions of a split by content, with their worked answers; those of "test" all differ."""
    made = [e for e in questions.chain_sums(ROWS, seed=1, terms=TERMS) if split_of(e["question"]) == split]
    return list({e["question"]: e for e in made}.values()) if split == "test" else made


def asked(folder: Path) -> AnswerTask:
    """Five hundred questions that no arm is trained on."""
    decoding = Decoding(tokens_per_step=2)
    return questions.task(
        examples("test")[:500],
        questions.alphabet(),
        folder,
        questions.lengths(TERMS)[1],
        decoding=decoding,
        puzzles=250,
        batch_size=250,
    )


def pretrain(steps: int) -> None:
    """Train the autoregressive model on questions and answers."""
    tokenizer = questions.alphabet()
    rows = questions.rows(examples("train"), tokenizer, LENGTH, "trained")
    torch.manual_seed(0)
    model = causal.build(size())
    with tempfile.TemporaryDirectory() as folder:
        judge = asked(Path(folder))
        found = judge.load()
        curve = causal.train(
            model,
            rows,
            steps=steps,
            seed=0,
            every=steps // 4,
            evaluate=lambda model: {"solved": causal.solved(model, judge, found)},
            **TRAINED,
        )
    causal.save(model, tokenizer, RUNS / "causal")
    append(HERE / "records.jsonl", {"arm": "causal", "seed": 0, "steps": steps, "curve": curve})
    print(curve)


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one run; return its record."""
    rows = questions.rows(examples("train"), questions.alphabet(), LENGTH, "eos_as_padding")
    masking = MASKINGS[ARMS[arm]]
    torch.manual_seed(seed)
    model = from_pretrained(RUNS / "causal", shifted=True).model if arm.endswith("-ar") else size().build()
    settings = {**loop(steps, seed), **TRAINED, "evaluate_every": steps // 20}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        evaluate = asked(Path(folder) / "task").start()
        config = TrainingConfig(**settings)
        Trainer(model, masking, rows, RowMean(), config, out=out, evaluate=evaluate, name=f"{arm} {seed}").train()
        points = read_metrics(out, "evaluation")
    curve = [{key: point[key] for key in ("step", "seconds", "solved", "interval", "loss")} for point in points]
    return {"arm": arm, "seed": seed, "steps": steps, "masking": to_json(masking), "curve": curve}


def main() -> None:
    """Pretrain, or run arms one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrain", action="store_true")
    parser.add_argument("--arm", nargs="*", default=[], choices=ARMS)
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.pretrain:
        pretrain(args.steps // 2)
    for seed in args.seed:
        for arm in args.arm:
            record = train(arm, seed, args.steps)
            append(HERE / "records.jsonl", record)
            print(arm, seed, args.steps, [point["solved"] for point in record["curve"]], flush=True)


if __name__ == "__main__":
    main()

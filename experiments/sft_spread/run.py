"""Is fine-tuning steadier with less variance? The core claim of arXiv 2511.18159, at the smallest size.

    python -m experiments.sft_spread.run --pretrain
    python -m experiments.sft_spread.run --seed 1 2 3 4 5 \\
        --arm independent ppots-independent mirror-independent both-independent causal
    python -m experiments.sft_spread.run --variance
    python -m experiments.sft_spread.run --task word_problems --arm independent causal --seed 0

A masked model and an autoregressive one of the same size are pretrained on short questions of reasoning-gym, then
fine-tuned on questions with worked answers. The autoregressive one is the control: its gradient has only the noise
of the rows, C. Every run appends one line to records.jsonl; --variance appends the gradient's variance in masks,
rates and rows (A, B, C) at the start and after fine-tuning with independent masks. Arms are compared with
`independent`, which is weaker than MDLM's `standard`: its rates are not stratified and begin at 0. `report.py` makes
the page.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from experiments import causal
from experiments.common import append, loop
from experiments.parts import questions
from unmask import ELBO, PPOTS, IndependentMasking, MaskedDiffusionLM, Trainer, TrainingConfig
from unmask.config import to_json
from unmask.data import TextTokenizer
from unmask.data.endings import Ending
from unmask.evaluation.tasks import AnswerTask
from unmask.evaluation.variance import Nested, compare_variance
from unmask.processes import Masking
from unmask.recipes import TextModel
from unmask.runs.config import load_model
from unmask.store import checkpoint
from unmask.store.metrics import read_metrics

HERE, RUNS = Path(__file__).parent, Path("runs") / "sft_spread"
MASKINGS: dict[str, IndependentMasking] = {
    "independent": IndependentMasking(),
    "ppots-independent": IndependentMasking(PPOTS()),
    "mirror-independent": IndependentMasking(pair="mirror"),
    "both-independent": IndependentMasking(PPOTS(), pair="mirror"),
}
ARMS = (*MASKINGS, "causal")
PRETRAINED = {"steps": 2000, "batch_size": 32, "learning_rate": 2e-3}
TUNED = {"batch_size": 16, "learning_rate": 2e-3}
TERMS, TRAINED_ON = 3, 2000
"""Of a chain sum; questions to fine-tune on."""
LENGTHS = {
    "chain_sums": (sum(questions.lengths(TERMS)) + 1, questions.lengths(TERMS)[1]),
    "word_problems": (448, 256),
}
"""Tokens of a row, and of its answer when it is decoded."""


def size(tokenizer: TextTokenizer) -> TextModel:
    """Both models: masked or causal; hidden[i - 1] of the causal one predicts token i."""
    return TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, positions=512)


def pretrain() -> None:
    """Train both models on short questions; every token is learnt, the question's too."""
    tokenizer = questions.alphabet()
    rows = questions.rows(questions.short_questions(60_000, seed=0), tokenizer, 96, "trained")
    rows = rows.map(lambda row: {"maskable": [True] * len(row["tokens"])}, features=rows.features)
    torch.manual_seed(0)
    training = TrainingConfig(**{**loop(PRETRAINED["steps"], seed=0), **PRETRAINED, "evaluate_every": None})
    model = size(tokenizer).build()
    Trainer(model, MASKINGS["independent"], rows, ELBO(), training, out=RUNS / "masked").train(overwrite=True)
    torch.manual_seed(0)
    control = causal.build(size(tokenizer))
    print(causal.train(control, rows, seed=0, every=500, **PRETRAINED))
    causal.save(control, tokenizer, RUNS / "causal")


def masked() -> MaskedDiffusionLM:
    """The pretrained masked model."""
    last = checkpoint.newest(RUNS / "masked" / "checkpoints")
    assert last is not None, "run --pretrain first"
    return load_model(last)


def examples(task: str, count: int, seed: int) -> list[dict[str, str]]:
    """Questions of a task with their worked answers."""
    if task == "chain_sums":
        return questions.chain_sums(count, seed, TERMS)
    return questions.word_problems(count, seed)


def data(task: str, ending: Ending) -> tuple[Dataset, Dataset]:
    """What is fine-tuned on, and the rows that P-POTS is fitted to."""
    rows = questions.rows(examples(task, TRAINED_ON, seed=1), questions.alphabet(), LENGTHS[task][0], ending)
    return rows.select(range(256, len(rows))), rows.select(range(256))


def asked(task: str, folder: Path) -> AnswerTask:
    """Two hundred and fifty others. None is fine-tuned on; its final answer may have been met in pretraining."""
    length, answer = LENGTHS[task]
    known = {example["question"] for example in examples(task, TRAINED_ON, seed=1)}
    new = [
        example
        for example in examples(task, 1000, seed=2)
        if len(example["answer"]) < answer and len(example["question"]) + answer < length
        if example["question"] not in known
    ]
    return questions.task(new[:250], questions.alphabet(), folder, answer, batch_size=250)


def tune(arm: str, seed: int, steps: int, task: str) -> dict[str, Any]:
    """Fine-tune and judge one run; return its record."""
    record = {"task": task, "arm": arm, "seed": seed, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        judge = asked(task, Path(folder) / "task")
        found = judge.load()
        if arm == "causal":
            model = LlamaForCausalLM.from_pretrained(RUNS / "causal")
            curve = causal.train(
                model,
                data(task, "trained")[0],
                steps=steps,
                seed=seed,
                every=steps // 2,
                evaluate=lambda model: {"solved": causal.solved(model, judge, found)},
                **TUNED,
            )
            return {**record, "curve": curve, "solved": curve[-1]["solved"]}
        settings = {**loop(steps, seed), **TUNED, "evaluate_every": steps // 2}
        out, (rows, held_out) = Path(folder) / "run", data(task, "eos_as_padding")
        Trainer(
            masked(),
            MASKINGS[arm],
            rows,
            ELBO(),
            TrainingConfig(**settings),
            out=out,
            held_out=held_out,
            evaluate=lambda model, last: judge.evaluate(model, found),
            name=f"{arm} {seed}",
        ).train()
        curve = [{k: point[k] for k in ("step", "solved", "loss")} for point in read_metrics(out, "evaluation")]
        norms = [point["grad_norm"] for point in read_metrics(out, "train")]
    return {
        **record,
        "masking": to_json(MASKINGS[arm]),
        "curve": curve,
        "solved": curve[-1]["solved"],
        "norms": norms,
    }


def variance(task: str, steps: int, row_sets: int) -> None:
    """Append the gradient's variance before and after fine-tuning, for every arm."""
    rows, causal_rows = data(task, "eos_as_padding")[0], data(task, "trained")[0]
    model, control = masked(), LlamaForCausalLM.from_pretrained(RUNS / "causal")
    for at in (0, steps):
        if at:
            with tempfile.TemporaryDirectory() as folder:
                training = TrainingConfig(**{**loop(at, 0), **TUNED, "evaluate_every": None})
                arguments = (MASKINGS["independent"], rows, ELBO(), training)
                model = load_model(Trainer(model, *arguments, out=Path(folder) / "run").train())
            causal.train(control, causal_rows, steps=at, seed=0, **TUNED)
        arms: dict[str, Masking] = dict(MASKINGS)
        nested = Nested(row_sets=row_sets, rates=4, masks=2)
        found = compare_variance(model, rows, arms, TUNED["batch_size"], nested, seed=0)
        for arm, parts in found.items():
            append(HERE / "variance.jsonl", {"task": task, "step": at, "arm": arm, **asdict(parts["gradient"])})
        only = causal.row_variance(control, causal_rows, TUNED["batch_size"], row_sets, seed=0)
        append(HERE / "variance.jsonl", {"task": task, "step": at, "arm": "causal", **only})


def main() -> None:
    """Pretrain, fine-tune or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrain", action="store_true")
    parser.add_argument("--variance", action="store_true")
    parser.add_argument("--task", choices=LENGTHS, default="chain_sums")
    parser.add_argument("--arm", nargs="*", default=[], choices=ARMS)
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--row-sets", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.pretrain:
        pretrain()
    for seed in args.seed:
        for arm in args.arm:
            record = tune(arm, seed, args.steps, args.task)
            append(HERE / "records.jsonl", record)
            print(args.task, arm, seed, args.steps, record["solved"], flush=True)
    if args.variance:
        variance(args.task, args.steps, args.row_sets)


if __name__ == "__main__":
    main()

"""Train with one time distribution, without the 1/t weight, and measure what was learnt.

    python experiments/adaptive/run.py --task sudoku --arm fall --seed 0

Arms: uniform, clipped-LOW-HIGH, beta-A-B, bell-MEAN-STD, and the rules of rules.py: loss, fall, product, gain,
spread, each also with endings: -beta (fitted by a Beta), -shareX (share of uniform), -widthX (smoothing over
rates). --arm and --seed take several. Appends a JSON line for each run to experiments/adaptive/records.jsonl.

Mean and width of Bell's defaults, on text, three seeds:

    python experiments/adaptive/run.py --task text --steps 1000 --seed 0 1 2 \\
        --arm bell-.5-.2 bell-.35-.2 bell-.65-.2 bell-.5-.3
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rules import RULES

from unmask.data.arithmetic import MASK_TOKEN as ADDITION_MASK
from unmask.data.arithmetic import VOCAB_SIZE as ADDITION_VOCAB
from unmask.data.arithmetic import answer_of, is_correct, load_addition
from unmask.data.stream import RowStream
from unmask.data.sudoku import load_sudoku
from unmask.data.text import load_text
from unmask.data.tokenizers import character_tokenizer
from unmask.evaluation.tasks import SudokuTask
from unmask.masks import ExactCount
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.objectives import MaskedMean, Objective, RowMean
from unmask.parts import SudokuData, SudokuModel
from unmask.parts.models import gpt2_config
from unmask.parts.sudoku import CLUES
from unmask.processes import IndependentMasking
from unmask.recipes import TextModel
from unmask.sampling import generate
from unmask.times import Bell, Beta, Clipped, TimeDistribution, Uniform
from unmask.training.platform import keep_freed_memory

Measure = Callable[[MaskedDiffusionLM], dict[str, Any]]
WIDTH, LAYERS, HEADS = 128, 4, 4


def time_of(arm: str) -> TimeDistribution:
    """The time distribution of an arm's name."""
    name, *rest = arm.split("-")
    if name in RULES:
        options: dict[str, Any] = {}
        for option in rest:
            key = option.rstrip("0123456789.")
            options[key] = float(option[len(key) :]) if option != key else True
        return RULES[name](**options)
    return {"uniform": Uniform, "clipped": Clipped, "beta": Beta, "bell": Bell}[name](*map(float, rest))


def gpt2(vocab_size: int, length: int, mask_token: int) -> MaskedDiffusionLM:
    """A small bidirectional GPT-2."""
    config = gpt2_config(vocab_size, length, WIDTH, LAYERS, HEADS, init_std=0.02)
    config._attn_implementation = "eager"
    return MaskedDiffusionLM.from_config(config, mask_token)


def nll(model: MaskedDiffusionLM, rows: Any) -> float:
    """ELBO per token in nats, with stratified noise that is the same for every model."""
    masking, objective = IndependentMasking(mask=ExactCount(), coupling="stratified"), RowMean()
    batch = masking.start(RowStream(rows), len(rows), seed=0).draw()
    weights = objective.weights(batch) / objective.normaliser(batch).float()
    pieces = [slice(start, start + 128) for start in range(0, len(batch), 128)]
    with torch.no_grad():
        return float(sum(model(batch[piece], weights[piece]).loss for piece in pieces))


def sudoku() -> tuple[MaskedDiffusionLM, Any, Objective, int, int, Measure, Measure]:
    """The library's recipe, with fewer steps."""
    test = load_sudoku("test", clues=CLUES, limit=400)
    task = SudokuTask(clues=CLUES)

    def last(model: MaskedDiffusionLM) -> dict[str, Any]:
        found = task.evaluate(model, test)
        return {"solved": found["solved"], "nll": found["loss"], "strata": found["strata"]}

    return SudokuModel().build(), SudokuData().load(), RowMean(), 16, 1000, lambda model: {}, last


@cache
def letters() -> tuple[Any, Any, int]:
    """Training rows, validation rows, mask token."""
    tokenizer = character_tokenizer(alphabet="27")
    rows, held_out = (load_text("sotu", split, tokenizer=tokenizer, length=128) for split in ("train", "validation"))
    held_out = held_out.select(np.linspace(0, len(held_out) - 2, 256).astype(int))  # the last row may be short
    return rows, held_out, tokenizer.mask_token_id


def text() -> tuple[MaskedDiffusionLM, Any, Objective, int, int, Measure, Measure]:
    """State of the Union addresses in 27 letters."""
    rows, held_out, mask_token = letters()

    def measure(model: MaskedDiffusionLM) -> dict[str, Any]:
        return {"nll": nll(model, held_out)}

    return TextModel(mask_token_id=mask_token).build(), rows, MaskedMean(), 16, 500, measure, measure


def addition() -> tuple[MaskedDiffusionLM, Any, Objective, int, int, Measure, Measure]:
    """Sums of two numbers of seven digits."""
    rows, held_out = load_addition("train", digits=7), load_addition("test", digits=7, rows=1000)

    def measure(model: MaskedDiffusionLM) -> dict[str, Any]:
        return {"nll": nll(model, held_out)}

    def last(model: MaskedDiffusionLM) -> dict[str, Any]:
        test = RowStream(held_out).rows(torch.arange(len(held_out)))
        right = is_correct(answer_of(generate(model, test).tokens), test.tokens)
        return {"solved": float(right.mean()), **measure(model)}

    return gpt2(ADDITION_VOCAB, 24, ADDITION_MASK), rows, RowMean(), 64, 1000, measure, last


TASKS = {"sudoku": sudoku, "text": text, "addition": addition}


def train(task: str, arm: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Train one run; return its record."""
    torch.manual_seed(seed)
    model, rows, objective, batch_size, default, measure, last = TASKS[task]()
    steps = steps or default
    masking = IndependentMasking(time_of(arm), ExactCount(), "stratified")
    process = masking.start(RowStream(rows, seed), batch_size, seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), fused=True)
    curve, densities, seconds = [], [], 0.0
    for step in range(steps):
        began = time.perf_counter()
        if process.time.due(step):
            process.time.refit()
        rate = min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate
        batch = process.draw()
        weights = objective.weights(batch) / objective.normaliser(batch).clamp(min=1).float()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch, weights, needs=process.needs)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        process.observe(out.scores)
        seconds += time.perf_counter() - began
        if (step + 1) % (steps // 5) == 0:
            with torch.autocast("cpu", torch.bfloat16):
                found = (last if step + 1 == steps else measure)(model)
            curve.append({"step": step + 1, **found})
            if process.time.learns:
                middle = (torch.arange(16).double() + 0.5) / 16
                densities.append([round(x, 3) for x in process.time.density(middle).tolist()])
    config = {"task": task, "arm": arm, "seed": seed, "steps": steps, "batch_size": batch_size}
    config |= {"body": type(model.backbone).__name__, "objective": type(objective).__name__}
    config |= {"threads": torch.get_num_threads()}
    return {**config, "seconds": round(seconds, 1), **curve[-1], "curve": curve[:-1], "densities": densities}


def main() -> None:
    """Run arms on one task, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--arm", nargs="+", required=True)
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for seed in args.seed:
        for arm in args.arm:
            record = train(args.task, arm, seed, args.steps)
            with (Path(__file__).parent / "records.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shown = ("task", "arm", "seed", "seconds", "solved", "nll")
            print({name: record[name] for name in shown if name in record}, flush=True)


if __name__ == "__main__":
    main()

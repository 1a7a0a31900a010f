"""What accelerates text? State of the Union letters: standard, bell, P-POTS + MIRROR, PUMA, and the best of them.

Bell differs from standard in three things (rates, stratified, no 1/t weight); `unweighted` has the last two alone.

    python -m experiments.sotu_bell.run --screen --arm standard bell ppots-mirror puma best
    python -m experiments.sotu_bell.run --seed 1 2 3 --steps 500 1000 --zero-shot moby.txt --judge FOLDER

Every run appends one line to records.jsonl: its learning curve (negative ELBO on held-out rows, common noise), and
at the end that number with more samples, on the test addresses and on a corpus of another kind (a text file), and
generated texts: entropy and distinct n-grams, and their perplexity under a causal model where one is given.
Screening (--screen) uses held-out rows of the validation addresses; the others the test addresses.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.common import append, loop
from unmask import LikelihoodConfig
from unmask.config import to_json
from unmask.data import load_text
from unmask.evaluation.generative import distinct, judge_texts, sample_tokens, unigram_entropy
from unmask.evaluation.likelihood import likelihood
from unmask.parts.maskings import MASKINGS
from unmask.parts.text import spread
from unmask.recipes import TextData, sotu
from unmask.runs.config import load_model
from unmask.sampling import Decoding
from unmask.store.metrics import read_metrics

SAMPLED = Decoding(policy="random", temperature=1.0, tokens_per_step=2)


def train(arm: str, seed: int, steps: int, screen: bool, zero_shot: str | None, judge: str | None) -> dict[str, Any]:
    """Train and evaluate one run; return its record."""
    config = sotu(arm)
    training = replace(config.training, **loop(steps, seed, warmup=0.05))
    data = TextData(held_out_rows=64)
    config = replace(config, training=training, data=data)
    tokenizer = data.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        last = config.train(Path(folder) / "run", name=f"{arm} {seed}")
        curve = [
            {key: point[key] for key in ("step", "seconds", "nats_per_token")}
            for point in read_metrics(Path(folder) / "run", "evaluation")
        ]
        model = load_model(last)
    sets = {"sotu": load_text("sotu", "validation" if screen else "test", tokenizer=tokenizer, length=data.length)}
    if zero_shot:
        sets[Path(zero_shot).stem] = load_text(zero_shot, "all", tokenizer=tokenizer, length=data.length)
    nats = {}
    for name, rows in sets.items():
        nats[name] = asdict(likelihood(model, spread(rows, 256), LikelihoodConfig(samples=4)).nats_per_token)
    record = {"arm": arm, "seed": seed, "steps": steps, "screen": screen, "masking": to_json(config.masking)}
    record |= {"nats": nats, "curve": curve}
    if not screen:
        tokens, _ = sample_tokens(model, tokenizer, 48, data.length, SAMPLED)
        made = {"unigram_entropy": asdict(unigram_entropy(tokens)), "decoding": to_json(SAMPLED)}
        made["distinct"] = [distinct(tokens, n) for n in (1, 2, 3)]
        if judge:
            found, name = judge_texts([tokenizer.decode(row) for row in tokens.tolist()], judge)
            made |= {"perplexity": asdict(found.perplexity), "judge": name}
        record["generated"] = made
    return record


def main() -> None:
    """Run arms, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", nargs="+", default=list(MASKINGS), choices=MASKINGS)
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[1000])
    parser.add_argument("--screen", action="store_true")
    parser.add_argument("--zero-shot", help="text file of another kind")
    parser.add_argument("--judge", help="folder of a causal language model that judges generated texts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seed:
        for steps in args.steps:
            for arm in args.arm:
                record = train(arm, seed, steps, args.screen, args.zero_shot, args.judge)
                append(Path(__file__).parent / "records.jsonl", record)
                print(arm, seed, steps, {k: round(v["value"], 3) for k, v in record["nats"].items()}, flush=True)


if __name__ == "__main__":
    main()

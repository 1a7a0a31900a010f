"""PUMA inside `transformers.Trainer`: a small model on bundled Sudokus, interrupted and resumed.

python examples/hf_trainer.py --steps 40
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import TrainingArguments, set_seed

from unmask import Clipped, ProgressiveUnmasking
from unmask.integrations import MaskedDiffusionTrainer
from unmask.recipes import SudokuData, SudokuModel


def main(steps: int = 40, out: str | Path | None = None) -> list[float]:
    """Train; returns the loss of every step."""
    out = Path(out or tempfile.mkdtemp())
    data = SudokuData(limit=5000)

    def trainer(save_steps: int) -> MaskedDiffusionTrainer:
        set_seed(0)
        return MaskedDiffusionTrainer(
            SudokuModel(layers=2, width=64).build(),
            TrainingArguments(
                output_dir=str(out),
                max_steps=steps,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=2,
                learning_rate=2e-3,
                logging_steps=1,
                save_steps=save_steps,
                eval_strategy="steps",
                eval_steps=steps,
                report_to="none",
            ),
            masking=ProgressiveUnmasking(stages=8, threshold=0.8, time=Clipped(0.5, 1.0), pool=32),
            train_dataset=data.load(),
            eval_dataset=data.held_out().select(range(32)),
        )

    trainer(save_steps=steps // 2).train()
    resumed = trainer(save_steps=steps)  # as after a crash halfway
    resumed.train(resume_from_checkpoint=str(out / f"checkpoint-{steps // 2}"))
    print(f"likelihood: {resumed.evaluate()['eval_loss']:.3f} nats per masked cell; checkpoints: {out}")
    return [line["loss"] for line in resumed.state.log_history if "loss" in line]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out")
    main(**vars(parser.parse_args()))

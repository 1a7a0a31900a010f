"""PUMA on worked answers from scratch: sums of four digits, worked out step by step."""

from dataclasses import replace

from unmask import Beta, Clipped, ExactCount, IndependentMasking, MaskedMean, ProgressiveUnmasking, TrainingConfig
from unmask.data.sums import sums_lengths, sums_tokenizer
from unmask.evaluation.tasks import SumsTask
from unmask.parts import WorkedSums, named_masking
from unmask.recipes import TextModel
from unmask.runs.config import RunConfig
from unmask.runs.study import Arm, Study
from unmask.sampling import Decoding

TERMS = 4
tokenizer = sums_tokenizer()
base = RunConfig(
    recipe="worked-sums",
    data=WorkedSums(TERMS),
    model=TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, layers=2, positions=sum(sums_lengths(TERMS)) + 1),
    **named_masking("uniform-count"),
    training=TrainingConfig(batch_size=64, learning_rate=2e-3, threads=1),
    evaluation=SumsTask(
        terms=TERMS, puzzles=200, final_puzzles=1000, batch_size=250, decoding=Decoding(tokens_per_step=2)
    ),
)
puma = ProgressiveUnmasking(stages=12, threshold=0.9)
fixed = {"control": "uniform-count", "budgets": (1600,), "warmup": 0.04, "evaluate": 0.1}
screened = {
    "puma": puma,
    **{f"puma-{policy}": replace(puma, policy=policy) for policy in ("margin", "entropy", "random")},
    "puma-no-threshold": replace(puma, threshold=None),
    "puma-lower": replace(puma, threshold=0.5),
    "puma-half": replace(puma, time=Clipped(0.5, 1.0)),
    "puma-6": replace(puma, stages=6),
}
screening = Study(
    "screening",
    base,
    {"uniform-count": {}}
    | {name: {"masking": masking} for name, masking in screened.items()}
    | {"puma-masked-mean": {"masking": puma, "objective": MaskedMean()}},
    seeds=(11,),
    **fixed,
)
study = Study(
    "worked-sums",
    base,
    {
        "uniform-count": {},
        "clipped": named_masking("clipped"),
        "beta": {"masking": IndependentMasking(Beta(2, 1), ExactCount())},
        "puma": Arm({"masking": puma}, budgets=(1067, 1600)),
        "puma-margin": {"masking": screened["puma-margin"]},
        "masked-mean": {"objective": MaskedMean()},
        "puma-masked-mean": {"masking": puma, "objective": MaskedMean()},
        "puma-batch": Arm({"masking": replace(puma, pool="batch")}, seeds=(21,)),
    },
    seeds=(21, 22, 23, 24, 25),
    **fixed,
)

"""PUMA on worked answers from scratch: sums of four digits, worked out step by step."""

from unmask import Beta, ExactCount, IndependentMasking, ProgressiveUnmasking, TrainingConfig
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
study = Study(
    "worked-sums",
    base,
    {
        "uniform-count": {},
        "clipped": named_masking("clipped"),
        "beta": {"masking": IndependentMasking(Beta(2, 1), ExactCount())},
        "puma": Arm({"masking": puma}, budgets=(1067, 1600)),
        "puma-batch": Arm({"masking": ProgressiveUnmasking(stages=12, threshold=0.9, pool="batch")}, seeds=(21,)),
    },
    control="uniform-count",
    seeds=(21, 22, 23, 24, 25),
    budgets=(1600,),
    warmup=0.04,
    evaluate=0.1,
)

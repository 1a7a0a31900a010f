"""Is fine-tuning steadier with less variance? The core claim of arXiv 2511.18159, at the smallest size.

    unmask study experiments/sft_spread/study.py --out runs/sft_spread

A model that works out sums of four digits now and then (`pretrained`; it is to have 10 to 60% right, so that accuracy
can move) goes on with the questions of another length, ten seeds, under MDLM's masks and with the paper's remedies.
`causal`, blocks of one, has no noise of masks or rates: its only part is C. The records that are here are of another
protocol (docs/papers/variance_reduction.md); this one was not run yet.
"""

from dataclasses import replace

from unmask import ELBO, PPOTS, Blockwise, ExactCount, IndependentMasking, RowMean, TrainingConfig
from unmask.data.sums import sums_lengths, sums_tokenizer
from unmask.evaluation.tasks import SumsTask
from unmask.parts import TextModel, WorkedSums, named_masking
from unmask.runs.config import RunConfig
from unmask.runs.study import Arm, Study, changed
from unmask.sampling import Decoding

FIRST, TUNED = 4, 3
tokenizer = sums_tokenizer()
size = TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, shifted=True, positions=sum(sums_lengths(FIRST)) + 1)
base = RunConfig(
    recipe="worked-sums",
    data=WorkedSums(TUNED),
    model=size,
    masking=IndependentMasking(mask=ExactCount()),
    objective=RowMean(),
    training=TrainingConfig(batch_size=16, learning_rate=5e-4, threads=1),
    evaluation=SumsTask(terms=TUNED, puzzles=200, final_puzzles=1000, batch_size=250, decoding=Decoding()),
)


def pretraining(run: RunConfig) -> RunConfig:
    """Sums of four digits, at a higher rate."""
    run = changed(run, {"training.batch_size": 64, "training.learning_rate": 2e-3})
    return replace(run, data=WorkedSums(FIRST), evaluation=replace(base.evaluation, terms=FIRST))


ways = {name: named_masking(name) for name in ("standard", "mirror", "ppots", "ppots-mirror")} | {
    "ppots-independent": {"masking": IndependentMasking(PPOTS()), "objective": ELBO()},
    "causal": {"masking": Blockwise(IndependentMasking(mask=ExactCount()), size=1), "objective": ELBO()},
}
study = Study(
    "sft_spread",
    base,
    {"pretrained": Arm(pretraining, seeds=(0,), budgets=(1200,))}
    | {name: Arm(change, start="pretrained") for name, change in ways.items()},
    control="standard",
    seeds=tuple(range(1, 11)),
    budgets=(400,),
    warmup=0.05,
    evaluate=0.25,
)

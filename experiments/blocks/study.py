"""Does it pay to grow the blocks of block diffusion during training? Text, blocks of 16, with and without PUMA.

Every arm ends with blocks of 16 letters; the curricula begin with blocks of one, autoregression, and of four.
"""

from dataclasses import replace

from unmask import Blockwise, ExactCount, IndependentMasking, LikelihoodConfig, ProgressiveUnmasking, RowMean
from unmask.parts import LikelihoodBy, OrderLikelihood
from unmask.parts.maskings import MASKINGS
from unmask.processes import Masking
from unmask.recipes import TextData, TextModel, sotu
from unmask.runs.config import RunConfig
from unmask.runs.study import Study

BLOCK = 16
INDEPENDENT, PUMA = IndependentMasking(mask=ExactCount()), ProgressiveUnmasking(stages=8, threshold=0.9)
CLIPPED = MASKINGS["clipped"]
data = TextData(first_given=True)
NOISE = LikelihoodConfig(Blockwise(IndependentMasking(mask=ExactCount(), coupling="stratified"), BLOCK), samples=2)


def growing(masking: Masking):
    """Blocks that grow over the first three tenths."""

    def change(config: RunConfig) -> RunConfig:
        four, all_of_them = (round(share * config.training.steps) for share in (0.15, 0.3))
        return replace(config, masking=Blockwise(masking, ((0, 1), (four, 4), (all_of_them, BLOCK))))

    return change


study = Study(
    name="blocks",
    base=replace(
        sotu(), data=data, model=TextModel(shifted=True), objective=RowMean(), evaluation=LikelihoodBy(NOISE)
    ),
    arms={
        "fixed": {"masking": Blockwise(INDEPENDENT, BLOCK)},
        "fixed-clipped": {"masking": Blockwise(CLIPPED.masking, BLOCK), "objective": CLIPPED.objective},
        "growing": growing(INDEPENDENT),
        "puma": {"masking": Blockwise(PUMA, BLOCK)},
        "puma-growing": growing(PUMA),
    },
    control="fixed",
    seeds=(1, 2),
    budgets=(320,),
    warmup=0.04,
    evaluate=0.1,
    finals={policy: OrderLikelihood(policy, BLOCK) for policy in ("confidence", "left_to_right")},
)

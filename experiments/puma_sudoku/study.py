"""PUMA with a pool on Sudoku: settings chosen on one half of the unseen puzzles, claims made on the other."""

from dataclasses import replace

from unmask import Beta, Clipped, ExactCount, IndependentMasking, MaskedMean, ProgressiveUnmasking, Ramp
from unmask.evaluation.results import Report
from unmask.evaluation.tasks import SudokuTask
from unmask.parts import SudokuData, SudokuModel, named_masking
from unmask.parts.sudoku import CELLS, CLUES
from unmask.recipes import sudoku
from unmask.runs.study import Arm, Study, changed
from unmask.sampling import Decoding

recipe = sudoku()
COUNTED = IndependentMasking(mask=ExactCount())
HALF = ProgressiveUnmasking(stages=8, threshold=0.8, time=Clipped(0.5, 1.0))
WHOLE = ProgressiveUnmasking(stages=8, threshold=0.9)
base = changed(recipe, {"masking": COUNTED, "training.batch_size": 16, "training.threads": 1})
often = {"control": "uniform-count", "warmup": 0.04, "evaluate": 0.1}


def judged_by(half: int):
    return replace(base, evaluation=SudokuTask(clues=CLUES, half=half, puzzles=100, final_puzzles=1000))


screened = {
    "uniform-count": COUNTED,
    "high-rates": replace(COUNTED, time=Clipped(0.5, 1.0)),
    "beta": replace(COUNTED, time=Beta(2, 1)),
    "whole": replace(WHOLE, threshold=None),
    "whole-threshold": WHOLE,
    "whole-early": replace(WHOLE, time=Beta(1, 0.5)),
    "half": replace(HALF, pool=32 * 16),
    **{f"half-times-{times}": replace(HALF, pool=times * 16) for times in (8, 64, 128)},
    **{f"half-{stages}": replace(HALF, stages=stages) for stages in (4, 16)},
    "half-no-threshold": replace(HALF, threshold=None),
    "half-threshold-lower": replace(HALF, threshold=0.6),
    "half-early": replace(HALF, time=Clipped(0.65, 1.0)),
    **{f"half-{policy}": replace(HALF, policy=policy) for policy in ("margin", "entropy", "random")},
    "half-growing": replace(HALF, stages=Ramp(4, 16, steps=600)),
}
screening = Study(
    "screening",
    judged_by(0),
    {name: {"masking": masking} for name, masking in screened.items()}
    | {"half-masked-mean": {"masking": HALF, "objective": MaskedMean()}},
    seeds=(11,),
    budgets=(750, 1000),
    **often,
)
chains = ((8, 0.6), (8, 0.8), (16, 0.2), (16, 0.4), (16, 0.6), (16, 0.8), (16, 0.9), (32, 0.4))
short = Study(
    "short",
    judged_by(0),
    {f"half-{k}-{t}": {"masking": replace(HALF, stages=k, threshold=t)} for k, t in chains}
    | {f"rates-from-{low}": {"masking": replace(COUNTED, time=Clipped(low, 1.0))} for low in (0.5, 0.7)}
    | {"chains-from-0.7": {"masking": replace(HALF, time=Clipped(0.7, 1.0))}},
    seeds=(12, 13, 14),
    budgets=(750,),
    **often | {"control": "half-8-0.8"},
)
confirming = Study(
    "confirming",
    judged_by(1),
    {
        "uniform-count": Arm(budgets=(1500, 3000)),
        "clipped": Arm(named_masking("clipped"), budgets=(1500,)),
        "beta": Arm({"masking": screened["beta"]}, budgets=(1500,)),
        "high-rates": Arm({"masking": screened["high-rates"]}, budgets=(750, 1500)),
        "higher-rates": Arm({"masking": replace(COUNTED, time=Clipped(0.7, 1.0))}, budgets=(750, 1500)),
        "puma": Arm({"masking": HALF}, budgets=(750, 900, 1500, 3000)),
        "puma-16": Arm({"masking": screened["half-16"]}, budgets=(750,)),
        "puma-whole": Arm({"masking": WHOLE}, budgets=(1500,)),
    },
    seeds=(21, 22, 23, 24, 25),
    finals={
        policy: SudokuTask(clues=CLUES, half=1, final_puzzles=400, decoding=Decoding(policy, tokens_per_step=4))
        for policy in ("margin", "entropy", "random")
    },
    **often,
)
half = {name: replace(confirming.arm(name), budgets=(500,)) for name in ("higher-rates", "puma")}
arms = {"uniform-count": Arm(budgets=(1000,))} | half
horizons = replace(confirming, name="horizons", arms=arms, seeds=(41, 42, 43, 44, 45), finals={})
pairs = {
    "data": SudokuData(form="pair"),
    "model": SudokuModel(layers=8, width=256, heads=8, positions=2 * CELLS),
    "training.batch_size": 32,
    "training.learning_rate": 3e-4,
    "evaluation.form": "pair",
    "evaluation.final_puzzles": 400,
}
paper = Study(
    "paper",
    changed(judged_by(1), pairs),
    {
        "uniform-count": {},
        "puma-batch": {"masking": ProgressiveUnmasking(stages=8, pool="batch")},
        "puma": {"masking": ProgressiveUnmasking(stages=8)},
    },
    seeds=(1,),
    budgets=(1000,),
    report=Report("loss"),
    checkpoint=0.05,
    **often,
)

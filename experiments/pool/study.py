"""PUMA's pool on Sudoku: how large must it be, and what is it that a small one spoils?

Whole chains without a threshold, where a pool that is the batch loses most. `sweep` varies batch, stages
and pool. `control` takes PUMA apart: uniform counts, its paper's baseline, of which every row is new; rows that come
back as PUMA's do, but under fresh masks (`RepeatedRows`); chains whose policy is random; chains by confidence. Each
with the batch as the pool, with 32 times the batch (the default) and with 100 times.
"""

from dataclasses import replace
from itertools import product

from experiments.pool.repeated import RepeatedRows
from experiments.puma_sudoku.study import judged_by
from unmask import ProgressiveUnmasking
from unmask.runs.study import Arm, Study

STEPS = 800
BUDGETS = {8: 2 * STEPS, 16: STEPS, 64: STEPS // 2}
base = judged_by(0)


def pooled(batch: int, stages: int, times: int) -> Arm:
    """Whole chains in a pool of so many batches; steps of 64 rows are half as many, steps of 8 twice as many."""
    masking = ProgressiveUnmasking(stages=stages, pool=times * batch)
    return Arm({"masking": masking, "training.batch_size": batch}, budgets=(BUDGETS[batch],))


often = {"control": "uniform-count", "warmup": 0.04, "evaluate": 0.1, "budgets": (STEPS,)}
grid = product((8, 16, 64), (4, 8, 16), (1, 10, 32, 100))
ends = ((16, 8, 3), (16, 8, 320), (8, 8, 320))
sweep = Study(
    "sweep",
    base,
    {"uniform-count": {}}
    | {f"batch-{b}-stages-{k}-times-{times}": pooled(b, k, times) for b, k, times in [*grid, *ends]},
    seeds=(1, 2),
    **often,
)
control = Study(
    "control",
    base,
    {"uniform-count": {}}
    | {
        f"{name}-{where}": {"masking": replace(masking, pool=pool)}
        for name, masking in {
            "repeated": RepeatedRows(stages=8),
            "random-chain": ProgressiveUnmasking(stages=8, policy="random"),
            "chain": ProgressiveUnmasking(stages=8),
        }.items()
        for where, pool in {"batch": 16, "pool": 512, "large": 1600}.items()
    },
    seeds=(1, 2),
    **often,
)

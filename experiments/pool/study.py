"""PUMA's pool on Sudoku: how large must it be, and what is it that a small one spoils?

Whole chains without a threshold, where a pool that is the batch loses most. `sweep` varies pool, batch and stages on
one seed. `control` takes PUMA apart: uniform counts, its paper's baseline, of which every row is new; rows that come
back as PUMA's do, but under fresh masks (`RepeatedRows`); chains whose policy is random; chains by confidence. Each
with the batch as the pool, with 32 times the batch (the default) and with 100 times.
"""

from dataclasses import replace

from experiments.pool.repeated import RepeatedRows
from experiments.puma_sudoku.study import judged_by
from unmask import ProgressiveUnmasking
from unmask.runs.study import Arm, Study

STEPS = 800
base = judged_by(0)


def chains(times: int, stages: int = 8, batch: int = 16) -> ProgressiveUnmasking:
    """Whole chains in a pool of so many batches."""
    return ProgressiveUnmasking(stages=stages, pool=times * batch)


def pooled(times: int, stages: int = 8, batch: int = 16, steps: int = STEPS) -> Arm:
    """An arm of them."""
    change = {"masking": chains(times, stages, batch), "training.batch_size": batch}
    return Arm(change, budgets=(steps,))


often = {"control": "uniform-count", "warmup": 0.04, "evaluate": 0.1, "budgets": (STEPS,)}
sweep = Study(
    "sweep",
    base,
    {"uniform-count": {}}
    | {f"batch-16-stages-8-times-{times}": pooled(times) for times in (1, 3, 10, 32, 100, 320)}
    | {f"batch-16-stages-{k}-times-{times}": pooled(times, k) for k in (4, 16) for times in (1, 10, 32, 100)}
    | {f"batch-8-stages-8-times-{times}": pooled(times, batch=8, steps=2 * STEPS) for times in (1, 10, 32, 100, 320)}
    | {f"batch-64-stages-8-times-{times}": pooled(times, batch=64, steps=STEPS // 2) for times in (1, 10, 32, 100)},
    seeds=(1,),
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

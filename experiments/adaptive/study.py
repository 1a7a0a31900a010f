"""Which fixed density of mask rates is best without the weight 1/t? On Sudoku and on letters.

    unmask study experiments/adaptive/study.py --out runs/adaptive

Rules that learnt the density during training were tried too and did not beat these: the records that are here, of a
script that docs/LOG.md names.
"""

from dataclasses import replace

from unmask import Bell, Beta, Clipped, ExactCount, IndependentMasking, MaskedMean, RowMean, Uniform
from unmask.recipes import sotu, sudoku
from unmask.runs.config import RunConfig
from unmask.runs.study import Study

EVEN = IndependentMasking(mask=ExactCount(), coupling="stratified")
DENSITIES = {
    "uniform": Uniform(),
    "0.3-to-0.8": Clipped(0.3, 0.8),
    "0.5-to-1": Clipped(0.5, 1.0),
    "beta": Beta(2, 1),
    "bell-middle": Bell(),
    "bell-low": Bell(0.35, 0.2),
    "bell-wide": Bell(0.5, 0.3),
}


def densities(name: str, base: RunConfig) -> Study:
    """All of them on one task, from 16 rows a step."""
    base = replace(base, masking=EVEN, training=replace(base.training, batch_size=16, threads=1))
    arms = {arm: {"masking.time": time} for arm, time in DENSITIES.items()}
    return Study(name, base, arms, control="uniform", budgets=(1000,), warmup=0.05, evaluate=0.1)


puzzles = densities("densities-sudoku", replace(sudoku(), objective=RowMean()))
letters = densities("densities-letters", replace(sotu(), objective=MaskedMean()))

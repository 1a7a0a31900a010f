"""PUMA on letters, judged by likelihood over all orders: what is the pool, what the rates, what the policy?"""

from dataclasses import replace

from experiments.ranking import study as ranking
from unmask import Bell, IndependentMasking, MaskedMean, ProgressiveUnmasking, RowMean
from unmask.parts import named_masking
from unmask.runs.study import Arm, Study, changed

CHAIN = ProgressiveUnmasking(stages=8)
arms = {
    "unweighted": IndependentMasking(coupling="stratified"),
    "bell": IndependentMasking(Bell(), coupling="stratified"),
    "puma": CHAIN,
    "puma-random": replace(CHAIN, policy="random"),
    "puma-bell": replace(CHAIN, time=Bell()),
    "puma-bell-random": replace(CHAIN, time=Bell(), policy="random"),
}
study = Study(
    "letters",
    changed(ranking.letters.base, {"objective": MaskedMean()}),
    {name: {"masking": masking} for name, masking in arms.items()}
    | {
        "puma-batch": Arm({"masking": replace(CHAIN, pool="batch")}, seeds=(1, 2, 3)),
        "clipped": named_masking("clipped"),
        "puma-row-mean": Arm({"masking": CHAIN, "objective": RowMean()}, seeds=(1, 2, 3)),
    },
    control="unweighted",
    seeds=(1, 2, 3, 4, 5),
    budgets=(1000,),
    finals=ranking.letters.finals,
    warmup=0.05,
    evaluate=0.2,
    checkpoint=None,
)

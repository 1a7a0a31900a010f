"""PUMA on letters, judged by likelihood over all orders: what is the pool, what the rates, what the policy?"""

from dataclasses import replace

from experiments.ranking import study as ranking
from unmask import Bell, IndependentMasking, MaskedMean, ProgressiveUnmasking, RowMean
from unmask.parts import named_masking
from unmask.runs.study import Study, changed

CHAIN = ProgressiveUnmasking(stages=8)
arms = {
    "unweighted": IndependentMasking(coupling="stratified"),
    "bell": IndependentMasking(Bell(), coupling="stratified"),
    "puma-batch": replace(CHAIN, pool="batch"),
    "puma": CHAIN,
    "puma-random": replace(CHAIN, policy="random"),
    "puma-bell": replace(CHAIN, time=Bell()),
    "puma-bell-random": replace(CHAIN, time=Bell(), policy="random"),
}
study = Study(
    "letters",
    changed(ranking.letters.base, {"objective": MaskedMean()}),
    {name: {"masking": masking} for name, masking in arms.items()}
    | {"clipped": named_masking("clipped"), "puma-row-mean": {"masking": CHAIN, "objective": RowMean()}},
    control="unweighted",
    seeds=(1, 2, 3),
    budgets=(1000,),
    finals=ranking.letters.finals,
    warmup=0.05,
    evaluate=0.2,
    checkpoint=None,
)

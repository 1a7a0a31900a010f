"""What accelerates text? State of the Union letters: standard, bell, P-POTS + MIRROR, PUMA, and the best of them.

Bell differs from standard in three things (rates, stratified, no 1/t weight); `unweighted` has the last two alone.
Learning curves are of held-out rows of the validation addresses, the final likelihood of the test addresses.
"""

from __future__ import annotations

from experiments.parts.text import GeneratedLetters, TextLikelihood
from unmask.parts import named_masking
from unmask.recipes import sotu
from unmask.runs.study import Arm, Study, changed

study = Study(
    name="sotu_bell",
    base=changed(sotu(), {"data.held_out_rows": 64}),
    arms={
        "standard": named_masking("standard"),
        "unweighted": Arm(named_masking("unweighted"), budgets=(1000,)),
        "bell": named_masking("bell"),
        "best": named_masking("best"),
        "ppots-mirror": Arm(named_masking("ppots-mirror"), seeds=()),
        "puma": Arm(named_masking("puma"), seeds=()),
    },
    control="standard",
    seeds=(1, 2, 3),
    budgets=(500, 1000),
    screening=(0,),
    finals={"test": TextLikelihood(), "generated": GeneratedLetters()},
    warmup=0.05,
    evaluate=0.1,
)

"""What accelerates text? State of the Union letters: half of the steps, and all, against MDLM's masks (`standard`).

`unweighted` lacks the weight 1/t; `clipped` and `bell` differ from that in their rates alone. Final likelihoods are
of the test addresses and, zero-shot, of the first chapters of Moby-Dick (scripts/make_moby.py).
"""

from unmask.parts import GeneratedTexts, TextLikelihood, named_masking
from unmask.recipes import sotu
from unmask.runs.study import Arm, Study, changed

MOBY = "experiments/sotu_bell/moby_dick.jsonl"
study = Study(
    name="sotu_bell",
    base=changed(sotu(), {"data.held_out_rows": 64}),
    arms={name: named_masking(name) for name in ("standard", "clipped", "bell", "best", "puma")}
    | {name: Arm(named_masking(name), budgets=(n,)) for name, n in (("unweighted", 1000), ("ppots-mirror", 500))},
    control="standard",
    budgets=(500, 1000),
    screening=(0,),
    finals={"test": TextLikelihood(), "moby-dick": TextLikelihood(MOBY, split="all"), "generated": GeneratedTexts()},
    warmup=0.05,
    evaluate=0.1,
)

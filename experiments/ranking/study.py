"""All methods ranked, at equal forwards: letters from scratch, and worked sums by a model that works out some.

Small on purpose, so that five paired seeds of every arm can be had. Every arm has the library's defaults: none was
fitted to what it is judged by. `letters` ends with the likelihood of unseen addresses. `sums` goes on from one model
that works out every sixth sum or so (`pretrained`), so that accuracy can move either way, and ends with the share of
unseen sums that it gets right; its `causal`, blocks of one, has no noise of masks or rates. `spread` fine-tunes that
model for longer, with ten seeds: does what reduces the variance make runs more alike? `horizons` asks how many times
fewer steps bell-shaped and clipped rates need on letters, each run's learning rate annealed over its own steps.
"""

from dataclasses import replace

from experiments.puma_text.study import base as scratch
from experiments.puma_text.study import tokenizer
from unmask import ELBO, Blockwise, Delimiters, IndependentMasking, InverseRate, ProgressiveUnmasking, SyRM
from unmask.parts import TextLikelihood, named_masking
from unmask.recipes import sotu
from unmask.runs.config import RunConfig
from unmask.runs.study import Arm, Study, changed
from unmask.sampling import Decoding

RANKED = (
    *("standard", "clipped", "unweighted", "bell", "mirror", "complement", "ppots", "ppots-mirror"),
    *("papl", "cart", "lift", "cap", "puma"),
)
methods = {name: named_masking(name) for name in RANKED}

LENGTH = 64
letters = Study(
    "letters",
    changed(sotu(), {"model.layers": 2, "data.length": LENGTH, "data.held_out_rows": 64, "training.threads": 1}),
    methods | {"half-life": named_masking("half-life")},
    control="standard",
    budgets=(300,),
    finals={"test": TextLikelihood(rows=256, length=LENGTH)},
    warmup=0.05,
    evaluate=0.5,
    checkpoint=None,
)
horizons = Study(
    "horizons",
    letters.base,
    {
        "standard": Arm(methods["standard"], budgets=(1200,)),
        "clipped": Arm(methods["clipped"], budgets=(400, 600)),
        "bell": Arm(methods["bell"], budgets=(300, 400, 600)),
    },
    control="standard",
    seeds=(11, 12, 13, 14, 15),
    finals=letters.finals,
    warmup=0.05,
    evaluate=0.1,
    checkpoint=None,
)

fewer = {"data.questions": 20_000, "evaluation.questions": 20_000, "evaluation.final_puzzles": 500}
tuning = changed(scratch, fewer | {"model.shifted": True, "evaluation.puzzles": 100})
tuning = changed(tuning, {"training.batch_size": 16, "training.learning_rate": 5e-4})


def pretraining(run: RunConfig) -> RunConfig:
    """Many rows a step at a higher rate."""
    settings = {"training.batch_size": 64, "training.learning_rate": 2e-3, "evaluation.final_puzzles": 1000}
    return changed(run, settings)


def blocks(size: int, **settings: float) -> dict[str, object]:
    """Blocks of exact counts with MDLM's weight, read from left to right and decoded so."""
    return {
        "masking": Blockwise(named_masking("uniform-count")["masking"], size, **settings),
        "objective": ELBO(),
        "evaluation.decoding": Decoding(tokens_per_step=min(size, 2), block_size=size, causal_blocks=True),
    }


delimiters = IndependentMasking(mask=Delimiters(tokenizer.named(("=",))), coupling="stratified")
syrm = SyRM(tokens=tokenizer.named(("+", "-", "=")))
tuned = methods | {
    "gift": named_masking("gift"),
    "delimiters": {"masking": delimiters, "objective": InverseRate()},
    "syrm": {"masking": IndependentMasking(coupling="stratified"), "objective": syrm},
    "puma-left-to-right": methods["puma"] | {"masking": ProgressiveUnmasking(policy="left_to_right")},
    "causal": blocks(1),
    "blocks-4": blocks(4),
    "blocks-4-causal": blocks(4, causal=0.25),
}
sums = Study(
    "sums",
    tuning,
    {"pretrained": Arm(pretraining, seeds=(0,), budgets=(1200,))}
    | {name: Arm(change, start="pretrained") for name, change in tuned.items()},
    control="standard",
    budgets=(250,),
    warmup=0.05,
    evaluate=0.5,
    checkpoint=None,
)
REDUCED = ("pretrained", "standard", "clipped", "mirror", "ppots", "ppots-mirror")
arms = {name: sums.arms[name] for name in REDUCED}
spread = replace(sums, name="spread", arms=arms, seeds=tuple(range(1, 11)), budgets=(1000,), evaluate=0.25)

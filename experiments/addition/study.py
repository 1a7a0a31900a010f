"""Does PUMA hurt the hard tail? Addition by length of the carry chain, under several decoding orders.

A pair whose carry runs through all its digits needs the sum's digits from right to left; a model trained along
its own confidence may never practise that (The Confidence Shortcut, arXiv 2605.29123).
"""

from dataclasses import replace

from unmask import Beta, ExactCount, IndependentMasking, ProgressiveUnmasking, TrainingConfig
from unmask.evaluation.tasks import AdditionTask
from unmask.parts import AdditionData, AdditionModel, named_masking
from unmask.runs.config import RunConfig
from unmask.runs.study import Arm, Study
from unmask.sampling import Decoding


def addition(digits: int) -> RunConfig:
    """Uniform counts on numbers of so many digits."""
    return RunConfig(
        recipe="addition",
        data=AdditionData(digits),
        model=AdditionModel(digits),
        **named_masking("uniform-count"),
        training=TrainingConfig(batch_size=96, learning_rate=2e-3, threads=1),
        evaluation=AdditionTask(digits=digits, puzzles=200, final_puzzles=1000),
    )


def arms(digits: int) -> dict[str, dict[str, object]]:
    """The field's baseline, high rates, and PUMA with its pool and with the paper's."""
    puma = ProgressiveUnmasking(stages=digits + 1)
    return {
        "uniform-count": {},
        "clipped": named_masking("clipped"),
        "beta": {"masking": IndependentMasking(Beta(2, 1), ExactCount())},
        "puma": {"masking": puma},
        "puma-batch": {"masking": replace(puma, pool="batch")},
    }


def tail(digits: int) -> dict[str, AdditionTask]:
    """Pairs by carry chain, each length equally often, under four orders."""
    return {
        policy: AdditionTask(
            digits=digits, final_puzzles=1200, seed=1, carry=(0, digits), decoding=Decoding(policy=policy)
        )
        for policy in ("confidence", "random", "left_to_right", "right_to_left")
    }


fixed = {"control": "uniform-count", "warmup": 0.04, "evaluate": 0.05}
chains = ProgressiveUnmasking(stages=6, threshold=0.9, pool=96 * 40)
screened = {
    **{f"puma-times-{times}": replace(chains, pool=96 * times) for times in (10, 40, 128)},
    "puma-no-threshold": replace(chains, threshold=None),
    "puma-high": replace(chains, time=Beta(2, 1)),
    "puma-high-times-10": replace(chains, time=Beta(2, 1), pool=96 * 10),
    "puma-random": replace(chains, threshold=None, policy="random"),
}
screening = Study(
    "five-screening",
    addition(5),
    {name: arm for name, arm in arms(5).items() if name in ("uniform-count", "beta")}
    | {name: {"masking": masking} for name, masking in screened.items()},
    seeds=(11, 1),
    budgets=(1000,),
    **fixed | {"evaluate": 0.1},
)
five = Study(
    "five",
    addition(5),
    {name: Arm(change, seeds=(21, 22) if name == "puma-batch" else None) for name, change in arms(5).items()},
    seeds=(21, 22, 23, 24, 25),
    budgets=(1000,),
    finals=tail(5),
    **fixed,
)
high = Study(
    "five-high",
    addition(5),
    {"uniform-count": {}, "puma-high": {"masking": screened["puma-high-times-10"]}, "beta": arms(5)["beta"]},
    seeds=(31, 32, 33, 34, 35),
    budgets=(1000,),
    **fixed,
)
eight = Study(
    "eight",
    addition(8),
    {name: change for name, change in arms(8).items() if name != "puma-batch"},
    seeds=(1, 2, 3),
    budgets=(1500,),
    finals=tail(8),
    **fixed,
)

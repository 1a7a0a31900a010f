"""kill -9 at any moment, of one process or two: the resumed run ends with the bytes of the unbroken one."""

from __future__ import annotations

import random
import time

import pytest

from unmask import PPOTS, Blockwise, ExactCount, IndependentMasking, ProgressiveUnmasking

KINDS = {
    "PUMA with a pool": ProgressiveUnmasking(stages=4, threshold=0.15, pool=24),
    "P-POTS with refits": IndependentMasking(PPOTS(refit_every=3, grid=4, rows=2, masks=1), ExactCount()),
    "blocks": Blockwise(IndependentMasking(), size=27),
    "blocks of PUMA": Blockwise(ProgressiveUnmasking(stages=3, threshold=0.15), size=27),
}
MOMENTS = {1: 5, 2: 2}
"""By the number of ranks, how often a run of each kind is killed."""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_bytes_of_the_unbroken_one(
    forked_ranks, trainer, build, state_of, tmp_path, kind, ranks
):
    """Most of the time goes into saving, so that most kills fall into it."""
    settings = {"masking": KINDS[kind], "steps": 12, "checkpoint_every": 1, "ema_decay": 0.9, "micro_batch_size": 2}
    last = "checkpoints/step-00000012"

    def work(out: str) -> None:
        trainer(out, model=build(dropout=0.2, n_positions=162), **settings).train(resume=True)

    began = time.monotonic()
    assert forked_ranks(lambda rank: work("whole"), ranks) == [0] * ranks
    lasted = time.monotonic() - began
    wanted, chance = state_of(tmp_path / "whole" / last), random.Random(f"{kind} {ranks}")
    for number in range(MOMENTS[ranks]):
        moment, out = chance.uniform(0, lasted), f"cut-{number}"
        codes = forked_ranks(lambda rank, out=out: work(out), ranks, limit=moment)
        assert set(codes) <= {None, 0}, f"ended by itself before {moment:.2f} s"
        assert forked_ranks(lambda rank, out=out: work(out), ranks) == [0] * ranks, f"killed after {moment:.2f} s"
        assert state_of(tmp_path / out / last) == wanted, f"killed after {moment:.2f} s of {lasted:.2f} s"

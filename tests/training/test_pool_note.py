"""A run that is too short for its pool says so before its first step, with a pool that fits."""

import re

import pytest

from unmask import ExactCount, IndependentMasking, ProgressiveUnmasking, RowStream
from unmask.training.checks import CHAINS, too_short_for_pool


@pytest.mark.parametrize("pool", [8, 16, 40])
@pytest.mark.parametrize("stages", [2, 5])
def test_a_run_in_which_chains_move_from_end_to_end_twice_is_long_enough(pool, stages, rows):
    process = ProgressiveUnmasking(stages=stages, pool=pool).start(RowStream(rows), 8)
    steps = CHAINS * stages * pool // 8
    assert too_short_for_pool(process, steps) is None
    told = too_short_for_pool(process, steps - 1)
    assert (told is None) == (pool == 8)  # the paper's pool cannot be smaller
    if told:
        smaller = int(re.search(r"pool=(\d+)", told)[1])
        again = ProgressiveUnmasking(stages=stages, pool=smaller).start(RowStream(rows), 8)
        assert too_short_for_pool(again, steps - 1) is None


def test_the_trainer_says_it_once_and_of_no_other_masking(trainer, capsys):
    trainer("short", masking=ProgressiveUnmasking(stages=4, pool=32)).train()
    assert capsys.readouterr().err.count("a chain of PUMA moves on every 4 steps, so 4 stages take 16") == 1
    trainer("other", masking=IndependentMasking(mask=ExactCount())).train()
    assert "PUMA" not in capsys.readouterr().err

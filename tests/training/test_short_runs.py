"""A run that is too short for its pool or its warm-up says so before its first step."""

import re

import pytest

from unmask import ExactCount, IndependentMasking, ProgressiveUnmasking, RowStream, TrainingConfig
from unmask.training.checks import CHAINS, never_warm, too_short_for_pool


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


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "warmup_stable_decay"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (4, 5), (4, 4), (5, 4), (50, 3)])
def test_a_run_that_never_has_its_learning_rate_says_so(schedule, warmup, steps):
    config = TrainingConfig(steps=steps, warmup_steps=warmup, schedule=schedule)
    rates = [config.learning_rate_at(step) for step in range(steps)]
    assert (never_warm(config) is not None) == (max(rates) < config.learning_rate)


def test_the_trainer_says_where_the_learning_rate_ends(trainer, capsys):
    trainer("cold", steps=4, warmup_steps=16, learning_rate=0.01).train()
    assert "rises for 16 steps, and the run has 4: it ends at 0.0025 of 0.01" in " ".join(
        capsys.readouterr().err.split()
    )
    trainer("warm", steps=4, warmup_steps=3).train()
    assert "rises" not in capsys.readouterr().err
    trainer("own", steps=4, warmup_steps=16, learning_rate=lambda step: 0.01).train()
    assert "rises" not in capsys.readouterr().err

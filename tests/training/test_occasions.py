"""When a run saves, evaluates and ends."""

from __future__ import annotations

import re
from pathlib import Path

from unmask import TrainingConfig
from unmask.training.callbacks import Callback
from unmask.training.occasions import Occasions

README = Path(__file__).parents[2] / "README.md"


def test_a_run_is_saved_by_the_clock_unless_it_says_otherwise():
    assert "A run is saved every ten minutes" in re.sub(r"\s+", " ", README.read_text())
    now = [0.0]
    occasions = Occasions(TrainingConfig(steps=100), [], 1, None, lambda: now[0])
    saved = []
    for step in range(1, 100):
        now[0] += 61
        if occasions.saves(step, 0)[0]:
            occasions.note_saved(step)
            saved.append(step)
    assert saved == list(range(10, 100, 10))
    assert occasions.saves(100, 0) == (True, 0)  # the last step, whatever the clock


def test_one_rank_s_signal_callback_and_clock_are_all_ranks_(forked_ranks, tmp_path):
    """Each rank asks for something of its own, at a step of its own."""

    def asked(rank: int) -> None:
        from torch.distributed import destroy_process_group, init_process_group

        init_process_group("gloo")
        mine, now = Callback(), [0.0]
        config = TrainingConfig(steps=9, checkpoint_minutes=10.0 if rank else None)
        occasions = Occasions(config, [mine], 2, None, lambda: now[0])
        found = []
        for step in (1, 2, 3, 4):
            now[0] = 601.0 if step == 2 else 0.0
            mine.keep = 3 if step == 3 and rank == 0 else None
            found.append(occasions.saves(step, 15 if step == 4 and rank else 0))
        mine.stop = "enough" if rank == 0 else None
        (tmp_path / str(rank)).write_text(repr([found, occasions.stops()]))
        destroy_process_group()

    assert forked_ranks(asked) == [0, 0]
    expected = repr([[(False, 0), (True, 0), (True, 0), (True, 15)], True])
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2

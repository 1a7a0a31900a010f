"""A rank that raises, is killed, stands still or does not see the folder: the others end soon, and say why."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from unmask.training import claim
from unmask.training.callbacks import Callback
from unmask.training.ending import RankError, broke_off

MINUTES = 0.1


class Meets(Callback):
    """Does something after step 2."""

    def __init__(self, what):
        self.what = what

    def step(self, step, metrics):
        if step == 2:
            self.what()


def _raise():
    raise KeyError("no such part")


ENDS = {
    "raises": (_raise, "rank 1 ended: KeyError: 'no such part'"),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "rank 1 left no word: killed"),
    "stands still": (lambda: time.sleep(60), f"rank 1 did not answer for {MINUTES:g} minutes (rank_timeout_minutes)"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "said"), ENDS.values(), ids=ENDS)
def test_others_end_soon_and_say_what_became_of_a_rank(forked_ranks, trainer, tmp_path, what, said):
    def work(rank: int) -> None:
        run = trainer(callbacks=[Meets(what if rank else lambda: None)], rank_timeout_minutes=MINUTES)
        try:
            run.train()
        except RankError as error:
            (tmp_path / "said").write_text(str(error))
            raise SystemExit(9) from None

    began = time.monotonic()
    assert forked_ranks(work, limit=30)[0] == 9
    assert time.monotonic() - began < 60
    assert (tmp_path / "said").read_text().startswith(said)
    word = json.loads((tmp_path / "run" / "failed-rank-0.json").read_text())
    assert word["cut_off"]
    assert "Traceback" in word["traceback"]


@pytest.mark.slow
def test_what_ended_a_run_is_forgotten_once_it_goes_on(forked_ranks, trainer, tmp_path, state_of):
    def work(rank: int, what=lambda: None) -> None:
        trainer("cut", callbacks=[Meets(what)], checkpoint_every=1).train(resume=True)

    assert forked_ranks(lambda rank: work(rank, _raise)) == [1, 1]
    assert len(list((tmp_path / "cut").glob("failed-rank-*.json"))) == 2
    assert forked_ranks(work) == [0, 0]
    assert not list((tmp_path / "cut").glob("failed-rank-*.json"))
    assert forked_ranks(lambda rank: trainer("whole", callbacks=[Meets(lambda: None)]).train() and None) == [0, 0]
    last = "checkpoints/step-00000006"
    assert state_of(tmp_path / "cut" / last) == state_of(tmp_path / "whole" / last)


@pytest.mark.slow
def test_ranks_without_a_shared_folder_are_refused_before_anything_is_written(forked_ranks, trainer, tmp_path):
    def work(rank: int) -> None:
        claim.VISIBLE_WITHIN = 0.5
        try:
            trainer(f"node-{rank}").train()
        except ValueError as error:
            (tmp_path / f"said-{rank}").write_text(str(error))

    assert forked_ranks(work) == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert "is not the folder that rank 0 writes to: the ranks of a run share its folder" in said[1]
    assert said[0] == f"rank 1: {said[1]}"
    assert not (tmp_path / "node-0" / "config.json").exists()


def test_a_broken_exchange_is_told_from_what_a_rank_met_itself():
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert broke_off(gloo)
    wrapped = ValueError("evaluation failed")
    wrapped.__cause__ = gloo
    assert broke_off(wrapped)
    assert not broke_off(RuntimeError("expected scalar type Float"))
    assert not broke_off(OSError("the disk is full"))


def test_a_single_rank_leaves_no_word(trainer, tmp_path):
    with pytest.raises(KeyError):
        trainer(callbacks=[Meets(_raise)]).train()
    assert not list((tmp_path / "run").glob("failed-rank-*"))

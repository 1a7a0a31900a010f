"""Ranks as forks of the test's own process: what they share is imported already, so a pair is there at once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable

import pytest
from accelerate.state import AcceleratorState, PartialState


@pytest.fixture
def forked_ranks() -> Callable[..., list[int | None]]:
    """A function: run `work(rank)` in processes that gloo connects; returns their exit codes, None for one that goes
    on after `limit` seconds (it is killed then)."""

    def run(work: Callable[[int], None], ranks: int = 2, limit: float = 100.0) -> list[int | None]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def connected(rank: int) -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
            os.environ.update(
                WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), RANK=str(rank), LOCAL_RANK=str(rank)
            )
            AcceleratorState._reset_state()
            PartialState._reset_state()
            work(rank)

        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=connected, args=(rank,)) for rank in range(ranks)]
        for process in started:
            process.start()
        until = time.monotonic() + limit
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        return codes

    return run

"""A run's folder, claimed by all its ranks together."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from unmask.distributed import gather_counts, raise_together
from unmask.store import checkpoint
from unmask.store.folder import LOCK_FILE, begin_run, check_folder, empty_run, lock_folder
from unmask.training.ending import clear_words, ending_together

VISIBLE_WITHIN = 30.0
"""Seconds within which every node sees what one wrote; network file systems keep what they knew for a few."""


@contextmanager
def claimed_folder(
    out: Path,
    description: dict[str, Any],
    changes: Callable[[dict[str, Any], int], list[str]],
    resume: bool,
    overwrite: bool,
    rank: int,
    ranks: int,
    minutes: float,
    wait: Callable[[], None],
) -> Iterator[Callable[[], None]]:
    """Hold the folder against other writers; refuse one that holds something else; give what writes the config.

    That is for all ranks to call once the run can begin, or go on: until then the config is that of what is there.
    Whatever ends one of the ranks meanwhile, the others learn of it in the folder.

    Args:
        out: the folder.
        description: of the run, as its config.json will have it.
        changes: what keeps a saved run from going on as this one, as for `check_folder`.
        resume: the folder may hold this run.
        overwrite: what the folder holds goes.
        rank: of this process.
        ranks: how many there are; each must call this.
        minutes: for which ranks wait for one another.
        wait: returns once every rank has called it.
    """

    def look() -> None:
        check_folder(out, description["run"], changes, resume, overwrite, description["tokenizer"])

    look()
    wait()  # all ranks look before one writes

    with ExitStack() as held:

        def lock() -> None:
            held.callback(lock_folder(out).release)
            look()  # another run may have begun, and ended, since the first look

        def clear() -> None:
            if overwrite:
                empty_run(out)
            checkpoint.clear_unfinished(checkpoint.root_of(out))
            clear_words(out)

        _first(rank, ranks, lock)
        check_shared(out, rank, ranks)
        _first(rank, ranks, clear)
        with ending_together(out, rank, ranks, minutes):
            yield lambda: _first(rank, ranks, lambda: begin_run(out, description))


def check_shared(out: Path, rank: int, ranks: int) -> None:
    """Refuse a folder that the ranks do not share: each writes its part of a checkpoint, and reads all at a resume.

    The first rank writes a number that was not there before into the lock that it holds; the others must see it.

    Args:
        out: the run's folder, which the first rank holds.
        rank: of this process.
        ranks: how many there are; each must call this.

    Raises:
        ValueError: on every rank, naming one that does not see the number.
    """
    if ranks == 1:
        return
    token = str(gather_counts(secrets.randbits(62), ranks)[0])
    _first(rank, ranks, lambda: (out / LOCK_FILE).write_text(token))
    until = time.monotonic() + VISIBLE_WITHIN
    while not (seen := _reads(out / LOCK_FILE, token)) and time.monotonic() < until:
        time.sleep(0.1)
    unseen = ValueError(
        f"{out} on {platform.node()} is not the folder that rank 0 writes to: the ranks of a run share its "
        "folder. Give --out on a file system that all nodes see"
    )
    raise_together(ranks, None if seen else unseen, ValueError)


def _first(rank: int, ranks: int, work: Callable[[], object]) -> None:
    """Have the first rank do what concerns all; what it meets, all raise."""
    problem = None
    try:
        if rank == 0:
            work()
    except (ValueError, OSError) as error:
        problem = error
    raise_together(ranks, problem, ValueError)


def _reads(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except (OSError, UnicodeDecodeError):
        return False

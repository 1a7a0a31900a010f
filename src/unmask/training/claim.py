"""A run's folder, claimed by all its ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from unmask.distributed import raise_together
from unmask.store import checkpoint
from unmask.store.folder import begin_run, lock_folder


@contextmanager
def claimed_folder(
    out: Path,
    described: dict[str, Any],
    look: Callable[[], None],
    overwrite: bool,
    rank: int,
    ranks: int,
    wait: Callable[[], None],
) -> Iterator[None]:
    """Hold the folder against other writers; refuse one that holds something else; write the config.

    Args:
        out: the folder.
        described: what goes to its config.json.
        look: raises ValueError where the run may not use the folder.
        overwrite: what the folder holds goes.
        rank: of this process.
        ranks: how many there are.
        wait: returns once every rank has called it.
    """
    look()
    wait()  # all ranks look before one writes
    with ExitStack() as held:
        problem = None
        try:
            if rank == 0:
                held.callback(lock_folder(out).release)
                look()  # another run may have begun, and ended, since the first look
                begin_run(out, described, overwrite)
                checkpoint.clear_unfinished(out / "checkpoints")
        except (ValueError, OSError) as error:
            problem = error
        raise_together(ranks, problem, ValueError)
        yield

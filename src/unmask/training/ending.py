"""Ranks end together: what one of them met the others say too, instead of how their exchange with it broke off."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 10.0
"""Seconds in which the ranks that still run leave word."""


class RankError(RuntimeError):
    """Another rank of the run failed, was killed or stands still; the message says which and why."""


@contextmanager
def ending_together(out: Path, rank: int, ranks: int, minutes: float) -> Iterator[None]:
    """Leave in the run's folder what ends this rank; where an exchange broke off, look there for the reason.

    Whoever ends leaves word, failed or cut off. So a rank that left none was killed, or stands still.

    Args:
        out: the run's folder, which all ranks see.
        rank: of this process.
        ranks: how many there are. A single one has nobody to tell.
        minutes: for which ranks wait for one another.

    Raises:
        RankError: where this rank's own part was in order.
    """
    if ranks == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        cut_off = broke_off(error)
        said = "".join(traceback.format_exception(error))
        word = {"cut_off": cut_off, "error": f"{type(error).__name__}: {error}", "traceback": said}
        with suppress(OSError):  # a full disk must not hide the error itself
            _path(out, rank).write_text(json.dumps(word, indent=1))
        if not cut_off:
            raise
        raise RankError(_reason(out, rank, ranks, minutes, error)) from error


def clear_words(out: Path) -> None:
    """Forget how the ranks ended last time."""
    for file in out.glob(_path(out, 0).name.replace("0", "*")):
        file.unlink()


def broke_off(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that of an exchange between ranks."""
    import torch.distributed as dist  # who has ranks has it: a command that has none need not wait for torch

    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _path(out: Path, rank: int) -> Path:
    return out / f"failed-rank-{rank}.json"


def _words(out: Path, rank: int, ranks: int) -> dict[int, dict[str, Any]]:
    """What the other ranks left, by rank."""
    found = {}
    for other in range(ranks):
        if other != rank:
            with suppress(OSError, ValueError):  # not there, or not whole yet
                found[other] = json.loads(_path(out, other).read_text())
    return found


def _reason(out: Path, rank: int, ranks: int, minutes: float, error: Exception) -> str:
    until = time.monotonic() + PATIENCE
    while True:
        words = _words(out, rank, ranks)
        for other, word in words.items():
            if not word["cut_off"]:
                return f"rank {other} ended: {word['error']} (all of it: {_path(out, other)})"
        silent = sorted(set(range(ranks)) - {rank} - set(words))
        if not silent or time.monotonic() > until:
            break
        time.sleep(0.1)
    if not silent:
        return f"the network between the {ranks} ranks broke off: {str(error).splitlines()[0]}"
    who = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
    if "timed out" in str(error).lower():
        return (
            f"{who} did not answer for {minutes:g} minutes (rank_timeout_minutes): stands still, or its machine or "
            "network is gone. Raise rank_timeout_minutes if its work takes so long; --resume goes on"
        )
    return f"{who} left no word: killed, most often for want of memory. --resume goes on from the last checkpoint"

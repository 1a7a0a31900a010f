"""The folder of a run: who may use it, its config.json, and the lock that keeps a second writer out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from unmask.config import completed, differences
from unmask.data.tokenizers import TextTokenizer
from unmask.store.checkpoint import newest, others, root_of, steps_of
from unmask.store.files import replace_text

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"


def read_config(folder: Path) -> dict[str, Any] | None:
    """The resolved config of the run in `folder`, or None where there is no config.json.

    Raises:
        ValueError: for a config.json that is not a run's.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text())
    except ValueError:
        saved = None
    if not isinstance(saved, dict) or not {"unmask", "run", "training"} <= set(saved):
        raise ValueError(f"{folder} is not empty and holds no run of unmask: {path.name} is not one of ours")
    return saved


def check_out(out: Path) -> None:
    """Raise ValueError where a file is in the way of a folder."""
    file = next((place for place in (out, *out.parents) if place.is_file()), None)
    if file is not None:
        raise ValueError(f"{file} is a file, and --out names a folder: choose another")


def check_folder(
    out: Path,
    run: Any,
    changes: Callable[[dict[str, Any], int], list[str]],
    resume: bool = False,
    overwrite: bool = False,
    tokenizer: str | None = None,
) -> None:
    """Look whether a run may use the folder; nothing is changed.

    Args:
        out: the folder.
        run: description of the run, as JSON values.
        changes: what keeps a run of other settings of the loop from being resumed, given its whole config and the
            steps that it has done.
        resume: the folder may hold this same run.
        overwrite: the folder may hold any run.
        tokenizer: fingerprint of what makes the rows' tokens, if they are text.

    Raises:
        ValueError: for a folder that holds something else, naming the fields in which a run differs.
    """
    check_out(out)
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    saved = read_config(out)
    if saved is None:
        if out.exists() and (not out.is_dir() or not all(map(_begun, out.iterdir()))):
            raise ValueError(f"{out} is not empty and holds no run of unmask; choose another --out")
    elif resume:
        before = {**saved, "training": completed(saved["training"])}
        named = _as_named(
            completed(saved["run"]), run, out / saved.get("started_in", os.path.relpath(Path.cwd(), out))
        )
        changed = differences(named, run) + changes(before, steps_of(root_of(out)))
        if changed:
            raise ValueError(f"{out} holds another run, it cannot be resumed: {'; '.join(changed)}")
        if saved.get("tokenizer") is not None and tokenizer is None:
            raise ValueError(f"{out} was trained with a tokenizer: give the trainer the same one")
        if saved.get("tokenizer") not in (None, tokenizer) and _kept_tokenizer(out) != tokenizer:
            raise ValueError(
                f"{out} was trained with another tokenizer than the data give now: the files that it was learnt from "
                "have changed, or the pretrained one has. Put them back to go on with --resume; or start anew with "
                "--overwrite or in another --out"
            )
    elif overwrite:
        spared = others(root_of(out))
        if spared:
            raise ValueError(
                f"{spared[0]} is a checkpoint of another version of unmask, which --overwrite does not delete: "
                "delete it yourself, or choose another --out"
            )
    else:
        raise ValueError(
            f"{out} already holds a run; use --resume to go on with it, --overwrite to lose it, or another --out"
        )


def _as_named(saved: Any, run: Any, folder: Path) -> Any:
    """The saved run, with each file that `run` finds under another name as `run` names it.

    Args:
        saved: JSON values, whose relative paths begin in `folder`.
        run: the same of the run as it is described now, in the working folder.
        folder: where the saved run was started.
    """
    if isinstance(saved, dict) and isinstance(run, dict):
        return {key: _as_named(value, run.get(key), folder) for key, value in saved.items()}
    if isinstance(saved, list) and isinstance(run, list) and len(saved) == len(run):
        return [_as_named(*pair, folder) for pair in zip(saved, run, strict=True)]
    if isinstance(saved, str) and isinstance(run, str) and saved != run and _same_place(folder, saved, run):
        return run
    return saved


def _same_place(folder: Path, before: str, now: str) -> bool:
    """Whether two names are of one file. Where the first finds none any more, the run was moved: they end alike."""
    try:
        if (folder / before).resolve() == Path(now).resolve():
            return True
        ends = Path(now).parts[-len(Path(before).parts) :]
        return Path(now).exists() and not (folder / before).exists() and ends == Path(before).parts
    except (OSError, ValueError):  # other text than a path
        return False


def _kept_tokenizer(out: Path) -> str | None:
    """Fingerprint of the tokenizer in the run's newest checkpoint, as the library at hand writes it."""
    last = newest(root_of(out))
    return None if last is None else TextTokenizer.load(last / "model").fingerprint


def lock_folder(out: Path) -> BaseFileLock:
    """Keep other writers out of a run's folder, which is made if need be, until the lock is released.

    The lock is the system's: it ends with the process that holds it, however that ends.

    Raises:
        ValueError: where another process, or another trainer of this one, holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run is training in {out} right now; wait for it, or choose another --out"
        ) from None
    return lock


def begin_run(out: Path, described: dict[str, Any]) -> None:
    """Write the config of the run that holds the folder's lock."""
    replace_text(out / CONFIG_FILE, json.dumps(described, indent=2) + "\n")


def delete_run(out: Path) -> None:
    """Delete a run's folder, if it is there.

    Raises:
        ValueError: where another process trains in it.
    """
    if not out.is_dir():
        return
    lock = lock_folder(out)
    try:
        empty_run(out)
        (out / CONFIG_FILE).unlink(missing_ok=True)
    finally:
        lock.release()
    shutil.rmtree(out)


def empty_run(out: Path) -> None:
    """Delete what a run's folder holds but its lock and its config, so that, killed midway, it is a run's still."""
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK_FILE, CONFIG_FILE):
            path.unlink()


def _begun(path: Path) -> bool:
    """Whether a file is what a run that was killed in its first moment leaves."""
    return path.name == LOCK_FILE or path.match(f".{CONFIG_FILE}.*new")

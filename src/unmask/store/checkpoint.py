"""Checkpoints: folders of safetensors and JSON, written aside and renamed, so that they are whole or absent.

checkpoints/step-00000080/
    manifest.json            step, version, size and SHA-256 of every other file, and the SHA-256 of all that
    model/  ema/             Hugging Face folders, or weights.safetensors for a backbone of another kind; of text
                             with the tokenizer and a model card
    optimizer.*  rank-0.*    tensors in .safetensors, everything else in .json
    moments-0.*              where ranks share the weights (FSDP2): each one's part of the optimiser's moments
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.distributed import raise_together

FORMAT = "unmask-checkpoint-1"
MANIFEST = "manifest.json"
TENSOR = "__tensor__"  # stands for a tensor in the JSON half of a state


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says what to do."""


class OtherFormat(CheckpointError):
    """A checkpoint of another version of unmask: it is whole for all that this version knows."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors and JSON values as `path`.safetensors and `path`.json."""
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {TENSOR: name}
        if isinstance(value, dict):
            return {str(key): strip(item, f"{name}/{key}" if name else str(key)) for key, item in value.items()}
        return value

    path.with_suffix(".json").write_text(json.dumps(strip(state, "")))
    save_file(tensors, path.with_suffix(".safetensors"))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Tensors are mapped from the file: what nobody looks at is not read."""
    tensors = load_file(path.with_suffix(".safetensors"))

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {TENSOR}:
                return tensors[value[TENSOR]]
            return {key: restore(item) for key, item in value.items()}
        return value

    return restore(json.loads(path.with_suffix(".json").read_text()))


def unmapped(state: Any) -> Any:
    """A state with copies of its tensors: who keeps those of `load_state` keeps the file too, also a deleted one."""
    if isinstance(state, dict):
        return {key: unmapped(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


def root_of(run: Path) -> Path:
    """Where the checkpoints of a run's folder lie."""
    return run / "checkpoints"


def weights_of(folder: Path) -> Path:
    """Where the weights to use lie in a checkpoint: the averaged ones where there are some."""
    return folder / "ema" if (folder / "ema").is_dir() else folder / "model"


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def write(
    root: Path,
    step: int,
    version: str,
    stages: Iterable[Callable[[Path], None]],
    keep: int,
    spared: Collection[int] = (),
    rank: int = 0,
    ranks: int = 1,
) -> Path:
    """Write the checkpoint of a step and delete all but the last `keep`, and what lies beyond this step.

    Beyond it lie only broken checkpoints, which the resumed run has passed over.

    Args:
        root: the run's checkpoint folder.
        step: steps done.
        version: of unmask, for the manifest.
        stages: each writes some files into the folder that it is given. All ranks have as many, and end each
            together: so what is gathered for one stage is let go of before the next.
        keep: whole checkpoints to keep, at least 1.
        spared: steps whose checkpoints stay besides.
        rank: of this process; the first one makes the folder whole.
        ranks: how many there are. Each must call this.

    Raises:
        CheckpointError: on every rank, where the disk is full or not writable for one of them, or the run's folder
            was deleted; earlier checkpoints are left as they were.
    """

    def together(work: Callable[[Path], None]) -> None:
        problem = None
        try:
            work(_writing(root, step))
        except (OSError, SafetensorError) as error:
            problem = _not_saved(root, step, error)
        raise_together(ranks, problem, CheckpointError)

    try:
        together(lambda folder: _begin(root, folder))
        for work in stages:
            together(work)
        together(lambda folder: _seal(root, folder, step, version, keep, spared) if rank == 0 else None)
    except CheckpointError:
        if rank == 0:
            shutil.rmtree(_writing(root, step), ignore_errors=True)
        raise
    return folder_of(root, step)


def _writing(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is put together."""
    return root / f".writing-step-{step:08d}"


def _begin(root: Path, folder: Path) -> None:
    root.mkdir(exist_ok=True)  # without its parents: a run's folder that was deleted is not made again
    folder.mkdir(exist_ok=True)


def _seal(root: Path, temporary: Path, step: int, version: str, keep: int, spared: Collection[int]) -> None:
    """Put manifest and name on a folder that is full, and delete what it replaces."""
    target, files = folder_of(root, step), {}
    for file in sorted(temporary.rglob("*")):
        _sync(file)
        if file.is_file():
            files[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest = {"format": FORMAT, "step": step, "version": version, "files": files}
    (temporary / MANIFEST).write_text(_signed(manifest))
    _sync(temporary / MANIFEST)
    _sync(temporary)
    if _is_other(target):
        raise CheckpointError(f"{target} is a checkpoint of another version of unmask, which stays: move it away")
    if target.exists():
        delete([target])
    temporary.rename(target)
    _sync(root)
    folders = saved(root)
    here = bisect_right(folders, target)
    stays = {folder_of(root, other) for other in spared}
    delete(other for other in folders[: max(0, here - keep)] + folders[here:] if other not in stays)


def saved(root: Path) -> list[Path]:
    """The checkpoints by their steps; a copy that lies beside them, as step-00000080.old, is the user's own."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and p.is_dir())


def others(root: Path) -> list[Path]:
    """Checkpoints of another version, which nobody deletes but the user."""
    return [folder for folder in saved(root) if _is_other(folder)]


def delete(folders: Iterable[Path]) -> None:
    """Delete checkpoints, whole or broken, but none of another version; of one that was moved away, the link alone.

    One that cannot be deleted (on a network disk, where somebody reads it) is told of, and no reason to end a run.
    """
    for folder in folders:
        if _is_other(folder):
            continue
        try:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        except OSError as error:
            warnings.warn(f"the checkpoint {folder} stays, it could not be deleted: {error}", stacklevel=2)


def _is_other(folder: Path) -> bool:
    try:
        _manifest(folder)
    except CheckpointError as error:
        return isinstance(error, OtherFormat)
    return False


def _not_saved(root: Path, step: int, error: Exception) -> CheckpointError:
    """What to say of a save that failed; whether its folder was deleted is asked now, for before it is too early."""
    said = f"could not save step {step} in {root}"
    if not root.parent.is_dir():
        return CheckpointError(f"{said}: the run's folder {root.parent} was deleted")
    why, remedy = str(error), "Once this is mended"
    if _is_full(error):
        why, remedy = "the disk is full", "Make room, then"
    elif not _writing(root, step).is_dir():
        why, remedy = f"{_writing(root, step)} was deleted meanwhile", "Leave the run's folder alone, then"
    last = newest(root)
    rest = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
    return CheckpointError(f"{said}: {why}; {rest}. {remedy} go on with --resume")


def check(folder: Path) -> dict[str, Any]:
    """Return the manifest of a whole checkpoint.

    Raises:
        CheckpointError: for a folder that is no checkpoint of ours, or is truncated or altered.
    """
    manifest = _manifest(folder)
    for name, facts in manifest["files"].items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:  # no path escapes: `reduce` deletes what is named
            raise CheckpointError(f"the checkpoint {folder} was altered: {name} would lie outside of it")
        if not file.is_file():
            raise CheckpointError(f"the checkpoint {folder} is not whole: {name} is missing")
        try:
            size = file.stat().st_size
            same = size == facts["bytes"] and sha256(file) == facts["sha256"]
        except OSError as error:  # of a disk that fails, or a folder that is being deleted
            raise CheckpointError(f"the checkpoint {folder} is not whole: {name} cannot be read: {error}") from None
        if size != facts["bytes"]:
            raise CheckpointError(
                f"the checkpoint {folder} is truncated: {name} has {size} of {facts['bytes']} bytes"
            )
        if not same:
            raise CheckpointError(f"the checkpoint {folder} was altered: {name} has another content than was saved")
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files nobody has looked at; raises as `check` does.

    Manifests of every version are signed alike, so that a flipped bit is not taken for another version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{folder} is not an unmask checkpoint: it has no readable {MANIFEST}") from None
    altered = CheckpointError(
        f"the checkpoint {folder} was altered: its {MANIFEST} has another content than was saved"
    )
    if isinstance(manifest, dict) and manifest.pop("sha256", _digest(manifest)) != _digest(manifest):
        raise altered
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        kind = OtherFormat if str(found).startswith(FORMAT.rstrip("0123456789")) else CheckpointError
        raise kind(
            f"{folder} is in format {found!r}; this version reads {FORMAT!r}: use the version that wrote it, or "
            "another --out"
        )
    if set(manifest) != {"format", "step", "version", "files"}:
        raise altered
    return manifest


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint, or None. Broken ones are passed over with a warning.

    Raises:
        OtherFormat: for one of another version, which is neither passed over nor, therefore, ever deleted.
    """
    for folder in reversed(saved(root)):
        try:
            check(folder)
            return folder
        except OtherFormat:
            raise
        except CheckpointError as error:
            warnings.warn(f"{error}; looking for an earlier one", stacklevel=2)
    return None


def steps_of(root: Path) -> int:
    """Steps done at the newest checkpoint, 0 without one; its content is not looked at."""
    folders = saved(root)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def reduce(folder: Path, kept: tuple[str, ...]) -> None:
    """Delete a checkpoint's files but for those below the folders `kept`: it can be read, and not resumed."""
    manifest = check(folder)
    gone = [name for name in manifest["files"] if name.split("/")[0] not in kept]
    if not gone:
        return
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if name not in gone}
    aside = folder / f".{MANIFEST}.new"
    aside.write_text(_signed(manifest))
    _sync(aside)
    aside.replace(folder / MANIFEST)  # before the files go: the checkpoint is whole at every moment
    for name in gone:
        (folder / name).unlink()


def clear_unfinished(root: Path) -> None:
    """Delete what an interrupted `write` left."""
    for folder in root.glob(".writing-*"):
        shutil.rmtree(folder)


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _signed(manifest: dict[str, Any]) -> str:
    """The manifest's text, with a checksum of its own: of all files it alone is in no other's list."""
    return json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1)


def _is_full(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"os error {code})" in str(error) for code in codes)


def _sync(path: Path) -> None:
    """Ask the system to put a file or folder on the disk, so that a rename never outruns its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

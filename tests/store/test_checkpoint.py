"""Checkpoints are whole or absent, hold nothing that unpickles, and say what is wrong with a bad one."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from unmask import MaskedDiffusionLM, ProgressiveUnmasking
from unmask.store import checkpoint
from unmask.store.checkpoint import CheckpointError


def _fill(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    checkpoint.save_state(folder / "rank-0", {"step": 3, "pool": {"tokens": torch.arange(5)}})


def _write(root: Path, *steps: int, keep: int = 9) -> list[Path]:
    return [checkpoint.write(root, step, "1.2", [_fill], keep) for step in steps]


def _names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


class _Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_hostile_checkpoint_does_nothing(trainer, tmp_path):
    """Pickles where others keep theirs, and in place of the weights, under a manifest that vouches for them."""
    last = trainer(steps=2).train()
    bomb = pickle.dumps(_Bomb(tmp_path / "went off"))
    for name in ("model/pytorch_model.bin", "model/training_args.bin", "optimizer.pt", "rank-0.pkl", "scheduler.bin"):
        (last / name).write_bytes(bomb)
    for name in ("model/model.safetensors", "optimizer.safetensors", "rank-0.safetensors"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(bomb)
        files = {
            str(p.relative_to(last)): p for p in last.rglob("*") if p.is_file() and p.name != checkpoint.MANIFEST
        }
        _manifest(files={n: {"bytes": p.stat().st_size, "sha256": checkpoint.sha256(p)} for n, p in files.items()})(
            last
        )
        assert checkpoint.newest(last.parent) == last
        with pytest.raises((OSError, ValueError, SafetensorError)):
            trainer(steps=3).train(resume=True)
        (last / name).write_bytes(content)
    (last / "model" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        MaskedDiffusionLM.from_pretrained(last / "model")
    assert not (tmp_path / "went off").exists()
    pickle.loads(bomb)
    assert (tmp_path / "went off").exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_last_ones_are_kept(trainer, tmp_path, keep):
    trainer(steps=7, checkpoint_every=2, keep_checkpoints=keep).train()
    assert _names(tmp_path / "run" / "checkpoints") == [f"step-{s:08d}" for s in (2, 4, 6, 7)][-keep:]


def test_broken_checkpoint_of_later_does_not_push_out_whole_ones(tmp_path):
    _, late = _write(tmp_path, 10, 80)
    (late / "rank-0.json").unlink()
    _write(tmp_path, 20, keep=1)
    assert _names(tmp_path) == ["step-00000020"]


def test_same_step_is_written_over(tmp_path):
    (folder,) = _write(tmp_path, 10)
    (folder / "rank-0.json").write_text("broken")
    _write(tmp_path, 10)
    assert checkpoint.check(folder)["step"] == 10


def test_kill_in_the_middle_of_a_save_leaves_the_earlier_one_whole(tmp_path):
    (earlier,) = _write(tmp_path, 10)
    ready = multiprocessing.get_context("fork").Event()

    def killed(folder: Path) -> None:
        _fill(folder)
        ready.set()
        os.kill(os.getpid(), signal.SIGKILL)

    save = multiprocessing.get_context("fork").Process(
        target=checkpoint.write, args=(tmp_path, 20, "1.2", [killed], 1)
    )
    save.start()
    save.join(60)
    assert ready.is_set()
    assert save.exitcode == -signal.SIGKILL
    assert _names(tmp_path) == [".writing-step-00000020", "step-00000010"]
    assert checkpoint.newest(tmp_path) == earlier
    checkpoint.clear_unfinished(tmp_path)
    assert _names(tmp_path) == ["step-00000010"]
    assert checkpoint.newest(tmp_path) == earlier


def test_nothing_bears_a_checkpoint_name_before_it_is_whole(tmp_path):
    def look(folder: Path) -> None:
        _fill(folder)
        assert not list(tmp_path.glob("step-*"))

    checkpoint.check(checkpoint.write(tmp_path, 5, "1.2", [look], keep=1))


def _truncate(folder: Path) -> None:
    file = folder / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _alter(folder: Path) -> None:
    file = folder / "rank-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _foreign(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _manifest(**changes):
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text()) | changes
        kept = {name: value for name, value in manifest.items() if value is not None and name != "sha256"}
        (folder / "manifest.json").write_text(json.dumps(kept))

    return change


DAMAGE = {
    "truncated file": (_truncate, r"truncated: rank-0\.safetensors has \d+ of \d+ bytes"),
    "altered file": (_alter, r"altered: rank-0\.safetensors"),
    "missing file": (lambda folder: (folder / "model" / "config.json").unlink(), r"model/config\.json is missing"),
    "foreign folder": (_foreign, r"not an unmask checkpoint: it has no readable manifest\.json"),
    "manifest cut short": (lambda f: (f / "manifest.json").write_text('{"form'), r"no readable manifest\.json"),
    "manifest of bytes": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        r"no readable manifest\.json",
    ),
    "manifest of another kind": (lambda f: (f / "manifest.json").write_text("[]"), "is in format None"),
    "foreign format": (_manifest(format="others-3"), "'others-3'; this version reads"),
    "manifest without files": (_manifest(files=None), r"altered: its manifest\.json"),
    "manifest without step": (_manifest(step=None), r"altered: its manifest\.json"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_broken_checkpoint_is_named_and_passed_over(tmp_path, damage, message):
    earlier, late = _write(tmp_path, 10, 20)
    damage(late)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.check(late)
    assert str(late) in str(error.value)
    with pytest.warns(UserWarning, match=message):
        assert checkpoint.newest(tmp_path) == earlier
    shutil.rmtree(earlier)
    with pytest.warns(UserWarning, match=message):
        assert checkpoint.newest(tmp_path) is None


def test_checkpoint_of_a_newer_version_is_neither_passed_over_nor_deleted(trainer, tmp_path):
    settings = {"steps": 4, "checkpoint_every": 2}
    last = trainer("run", **settings).train()
    _manifest(format="unmask-checkpoint-99")(last)
    before = {p: p.read_bytes() for p in last.rglob("*") if p.is_file()}
    with pytest.raises(checkpoint.OtherFormat, match="use the version that wrote it"):
        trainer("run", **settings).train(resume=True)
    with pytest.raises(ValueError, match=r"step-00000004 is a checkpoint of another version.*delete it yourself"):
        trainer("run", **settings).train(overwrite=True)
    assert {p: p.read_bytes() for p in last.rglob("*") if p.is_file()} == before


def test_a_step_that_another_version_has_saved_is_not_saved_over(trainer, stop_at, tmp_path):
    settings = {"steps": 4, "checkpoint_every": 2}
    with pytest.raises(stop_at.error):
        trainer("run", evaluate=stop_at(3), evaluate_every=1, **settings).train()
    last = tmp_path / "run" / "checkpoints" / "step-00000004"
    shutil.copytree(last.with_name("step-00000002"), last)
    _manifest(format="unmask-checkpoint-99", step=4)(last)
    before = {p: p.read_bytes() for p in last.rglob("*") if p.is_file()}
    with pytest.raises(checkpoint.CheckpointError, match=r"another version|use the version that wrote it"):
        trainer("run", **settings).train(resume=True)
    assert {p: p.read_bytes() for p in last.rglob("*") if p.is_file()} == before


def test_no_checkpoint_of_another_version_makes_room_for_a_new_one(trainer, stop_at, tmp_path):
    """Not even one that is behind, as after copying: what is kept besides are the newest of this version."""
    settings = {"steps": 8, "checkpoint_every": 1, "keep_checkpoints": 2}
    with pytest.raises(stop_at.error):
        trainer("run", evaluate=stop_at(3), evaluate_every=1, **settings).train()
    folder = tmp_path / "run" / "checkpoints"
    _manifest(format="unmask-checkpoint-99")(folder / "step-00000001")
    trainer("run", **settings).train(resume=True)
    assert sorted(int(p.name[-1]) for p in folder.glob("step-*")) == [1, 7, 8]


@pytest.mark.parametrize("damage", [_truncate, _alter, _foreign])
def test_resume_goes_on_from_the_earlier_of_two(trainer, state_of, stop_at, tmp_path, damage):
    settings = {"steps": 8, "checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(5), **settings).train()
    damage(tmp_path / "cut" / "checkpoints" / "step-00000004")
    run = trainer("cut", **settings)
    with pytest.warns(UserWarning, match="step-00000004.*looking for an earlier one"):
        last = run.train(resume=True)
    assert state_of(last) == state_of(trainer("whole", **settings).train())


def _flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def _damages(size: int, seed: str):
    """By name, what may become of a file of so many bytes."""
    bits = random.Random(seed).sample(range(8 * size), min(8 * size, 6))
    yield "missing", Path.unlink
    for length in {0, size // 2, size - 1}:
        yield f"cut to {length} bytes", lambda file, length=length: os.truncate(file, length)
    for bit in bits:
        yield f"bit {bit} flipped", lambda file, bit=bit: _flip(file, bit)


def test_whatever_file_of_a_checkpoint_is_damaged_the_one_before_is_used_and_it_is_said(trainer, tmp_path):
    """Every file that a run with a pool and an average saves."""
    settings = {"masking": ProgressiveUnmasking(pool=16), "ema_decay": 0.9, "checkpoint_every": 3}
    last = trainer(**settings).train()
    earlier, files = last.with_name("step-00000003"), sorted(p for p in last.rglob("*") if p.is_file())
    assert len(files) >= 8
    for file in files:
        content = file.read_bytes()
        for what, damage in _damages(len(content), file.name):
            damage(file)
            with pytest.warns(UserWarning, match=f"{last.name} .*{file.name}.*looking for an earlier one"):
                assert checkpoint.newest(last.parent) == earlier, f"{file.name}: {what}"
            file.write_bytes(content)
    assert checkpoint.newest(last.parent) == last


@pytest.mark.slow
def test_every_bit_of_a_manifest_counts(tmp_path):
    (late,) = _write(tmp_path, 20)
    file = late / checkpoint.MANIFEST
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        _flip(file, bit)
        with pytest.raises(CheckpointError) as error:
            checkpoint.check(late)
        assert not isinstance(error.value, checkpoint.OtherFormat), f"bit {bit}"
        file.write_bytes(content)
    assert checkpoint.newest(tmp_path) == late


def test_a_manifest_that_was_written_without_a_checksum_of_its_own_is_read(tmp_path):
    (folder,) = _write(tmp_path, 10)
    _manifest()(folder)
    assert "sha256" not in json.loads((folder / checkpoint.MANIFEST).read_text())
    assert checkpoint.check(folder)["step"] == 10


@pytest.mark.parametrize("name", ["../kept", "model/../../kept", "{folder}/kept"])
def test_no_file_outside_of_a_checkpoint_is_read_or_deleted(tmp_path, name):
    """A manifest may come from anybody, and its checksum is no signature."""
    (folder,) = _write(tmp_path / "checkpoints", 10)
    kept = folder.parent / "kept"
    kept.write_text("")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    del manifest["sha256"]
    facts = {"bytes": 0, "sha256": checkpoint.sha256(kept)}
    manifest["files"][name.format(folder=folder.parent)] = facts
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    for work in (checkpoint.check, lambda folder: checkpoint.reduce(folder, ("model",))):
        with pytest.raises(CheckpointError, match="would lie outside of it"):
            work(folder)
    assert kept.is_file()


def test_without_a_folder_there_is_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks the system what a handle is of")
def test_all_that_a_checkpoint_holds_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut after the renaming must not lose a file, nor the folder's entry that names it."""
    synced, fsync, rename = [], os.fsync, Path.rename

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        lacking = {path, *path.rglob("*")} - set(synced)
        assert not lacking
        synced.append(target)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)
    (last,) = _write(tmp_path, 3)
    assert synced[synced.index(last) + 1] == tmp_path


def test_a_copy_beside_the_checkpoints_is_the_user_s_own(tmp_path):
    """It has been taken for the newest one, and been deleted when there were newer ones."""
    last = _write(tmp_path, 10, 20)[-1]
    copies = [shutil.copytree(last, last.with_name(last.name + end)) for end in ("-backup", ".old")]
    assert checkpoint.newest(tmp_path) == last
    assert checkpoint.steps_of(tmp_path) == 20
    _write(tmp_path, 30, 40, keep=1)
    assert _names(tmp_path) == sorted([*(copy.name for copy in copies), "step-00000040"])


def test_a_checkpoint_that_was_moved_away_does_not_end_the_run_that_prunes_it(tmp_path):
    root, away = tmp_path / "checkpoints", tmp_path / "away"
    (first,) = _write(root, 10)
    first.rename(away)
    first.symlink_to(away)
    assert checkpoint.newest(root) == first
    _write(root, 20, keep=1)
    assert _names(root) == ["step-00000020"]
    assert (away / checkpoint.MANIFEST).is_file()  # the link goes, what it names is the user's


def test_a_checkpoint_that_cannot_be_deleted_is_told_of(tmp_path, monkeypatch):
    """As on a network disk, while somebody reads it. The new one is saved all the same."""
    _write(tmp_path, 10)

    def busy(folder, **options):
        raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        with pytest.warns(UserWarning, match="step-00000010 stays.*not empty"):
            _write(tmp_path, 20, keep=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000020"
    _write(tmp_path, 30, keep=1)
    assert _names(tmp_path) == ["step-00000030"]

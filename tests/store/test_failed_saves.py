"""A save that fails loses nothing that was saved before, and says why: the disk is full, or a folder was deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from unmask.store import checkpoint
from unmask.store.checkpoint import CheckpointError
from unmask.training.callbacks import Callback


def _names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def _model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}" + 99 * "\n")


@pytest.mark.parametrize("log_every", [1, 100], ids=["at the log", "at the checkpoint"])
def test_a_folder_that_is_deleted_during_a_run_is_not_made_again(trainer, tmp_path, log_every):
    class Delete(Callback):
        def step(self, step, metrics):
            if step == 3:
                shutil.rmtree(tmp_path / "run")

    run = trainer(callbacks=[Delete()], checkpoint_every=2, log_every=log_every)
    with pytest.raises((OSError, CheckpointError), match=r"the run's folder .*was deleted"):
        run.train()
    assert not (tmp_path / "run").exists()


def _lose(what: str):
    def lose(folder: Path) -> None:
        shutil.rmtree({"run": folder.parents[1], "checkpoints": folder.parent, "checkpoint": folder}[what])
        _model(folder)

    return lose


FAILS = {
    "the run's folder": (_lose("run"), r"the run's folder \S*run was deleted$"),
    "its checkpoints": (_lose("checkpoints"), r"writing-step-00000020 was deleted meanwhile; there is no earlier.*"),
    "the one at hand": (
        _lose("checkpoint"),
        r"was deleted meanwhile; the last good checkpoint is \S*step-00000010\.",
    ),
    "something in its way": (
        lambda f: (_model(f), _model(f)),
        r"File exists.*Once this is mended go on with --resume$",
    ),
}


@pytest.mark.parametrize(("work", "said"), FAILS.values(), ids=FAILS)
def test_a_save_that_fails_between_look_and_write_says_why(tmp_path, work, said):
    """Room is asked for where it is lacking alone, and what was deleted is not made again."""
    root = tmp_path / "run" / "checkpoints"
    root.parent.mkdir()
    checkpoint.write(root, 10, "1.2", [_model], keep=9)
    with pytest.raises(CheckpointError, match=f"could not save step 20 in .*{said}") as error:
        checkpoint.write(root, 20, "1.2", [work], keep=1)
    assert "Make room" not in str(error.value)
    assert not (root / ".writing-step-00000020").exists()
    assert (tmp_path / "run").exists() == ("run was deleted" not in str(error.value))


@pytest.mark.parametrize("size", [8_000, 25_000], ids=["weights", "optimiser"])
def test_full_disk_while_saving_keeps_the_earlier_checkpoint(trainer, full_disk, state_of, tmp_path, size):
    """The disk fills up in the middle of the run; once there is room, the run goes on."""
    settings = {"steps": 8, "checkpoint_every": 3, "evaluate_every": 4, "log_every": 100, "ema_decay": 0.9}
    whole = trainer("whole", **settings).train()
    limits = []

    def fill_up(model, last):
        if not last and (tmp_path / "cut" / "checkpoints").exists():
            limits.append(full_disk(size))
            limits[-1].__enter__()
        return {}

    run = trainer("cut", evaluate=fill_up, **settings)
    (tmp_path / "cut").mkdir()
    try:
        with pytest.raises(
            CheckpointError, match=r"step 6 .*the disk is full.*last good checkpoint is .*step-00000003"
        ):
            run.train()
    finally:
        for limit in limits:
            limit.__exit__(None, None, None)
    assert _names(tmp_path / "cut" / "checkpoints") == ["step-00000003"]
    assert state_of(trainer("cut", **settings).train(resume=True)) == state_of(whole)


def test_first_save_on_a_full_disk_says_that_there_is_no_earlier_one(tmp_path, full_disk):
    with full_disk(100), pytest.raises(CheckpointError, match="the disk is full; there is no earlier checkpoint"):
        checkpoint.write(tmp_path / "checkpoints", 1, "1.2", [_model], keep=9)
    assert _names(tmp_path / "checkpoints") == []

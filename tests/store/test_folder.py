"""Who may use a folder: nothing is trained, changed or deleted before that is settled."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from unmask import Bell, Bernoulli, ExactCount, IndependentMasking, ProgressiveUnmasking, RowMean
from unmask.recipes import sudoku
from unmask.store.folder import begin_run, check_folder, delete_run, empty_run, lock_folder, read_config


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folder_of_a_run_is_refused_untouched(trainer, tmp_path):
    trainer().train()
    before = _content(tmp_path)
    with pytest.raises(
        ValueError, match="already holds a run; use --resume to go on with it, --overwrite to lose it"
    ):
        trainer().train()
    assert _content(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate: 0\.001 -> 0\.5"),
        ({"steps": 7}, "steps: 6 -> 7"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"ema_decay": 0.9}, r"ema_decay: None -> 0\.9"),
        ({"masking": IndependentMasking(mask=Bernoulli())}, r"masking\.mask\.type: ExactCount -> Bernoulli"),
        ({"masking": ProgressiveUnmasking(stages=5)}, r"masking\.type: .*masking\.stages: None -> 5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_resume_with_a_changed_field_names_it(trainer, tmp_path, changed, message):
    trainer().train()
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer(**changed).train(resume=True)
    assert _content(tmp_path) == before


@pytest.mark.parametrize(
    "changed", [{"log_every": 3}, {"evaluate_every": 2}, {"checkpoint_every": 2}, {"keep_checkpoints": 5}]
)
def test_what_does_not_touch_the_weights_may_change_on_resume(trainer, stop_at, state_of, changed):
    settings = {"steps": 8, "checkpoint_every": 3, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(5), **settings).train()
    last = trainer("cut", **settings | changed).train(resume=True)
    assert state_of(last) == state_of(trainer("whole", **settings).train())


def test_a_run_saved_before_a_field_existed_goes_on_if_the_field_has_its_default(
    trainer, stop_at, tmp_path, state_of
):
    """Configs gain fields; a run of an older version did what the default does."""
    masking = IndependentMasking(Bell())
    settings = {"evaluate_every": 3, "checkpoint_every": 3, "masking": masking}
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(2), **settings).train()
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    for config, field in (
        (saved["training"], "attention"),
        (saved["run"]["masking"], "pair"),
        (saved["run"]["masking"]["time"], "std"),
    ):
        del config[field]
    path.write_text(json.dumps(saved))
    for other, named in (
        ({"attention": "eager"}, "attention: auto -> eager"),
        ({"masking": IndependentMasking(Bell(std=0.3))}, r"masking\.time\.std: 0\.2 -> 0\.3"),
    ):
        with pytest.raises(ValueError, match=f"holds another run, it cannot be resumed: .*{named}"):
            trainer(**settings | other).train(resume=True)
    assert state_of(trainer(**settings).train(resume=True)) == state_of(trainer("whole", **settings).train())


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["plain", "resume", "overwrite"])
@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "years of work"},
        {"config.json": '{"model_type": "gpt2", "vocab_size": 50257}', "model.safetensors": "a model"},
        {"config.json": "not JSON", "data": "important"},
        {"config.json": "[]", "data": "important"},
        {"checkpoints/step-00000001/model.bin": "a model"},
    ],
    ids=["other", "model", "text", "list", "checkpoints"],
)
def test_foreign_folder_is_refused_untouched(trainer, tmp_path, how, files):
    """Other programs name their files config.json too; to overwrite means to delete runs, nothing else."""
    for name, text in files.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'run'} is not empty and holds no run of unmask")):
        trainer().train(**how)
    assert _content(tmp_path) == before


def test_file_in_place_of_the_folder_is_refused(trainer, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"run is a file, and --out names a folder"):
        trainer().train(overwrite=True)
    assert (tmp_path / "run").read_text() == "a file"


def test_overwrite_starts_afresh_and_leaves_nothing_of_the_old_run(trainer, state_of, tmp_path):
    trainer(steps=9, checkpoint_every=1, keep_checkpoints=9).train()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "note").write_text("kept")
    last = trainer(seed=1).train(overwrite=True)
    assert state_of(last) == state_of(trainer("other", seed=1).train())
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000006"]
    assert (tmp_path / "beside" / "note").read_text() == "kept"


BEGUN = {"unmask": "0", "run": {}, "training": {}}


class Killed(BaseException):
    """Ends a deletion midway."""


@pytest.mark.parametrize(
    "deletes", [lambda out: (empty_run(out), begin_run(out, BEGUN)), delete_run], ids=["train", "compare"]
)
def test_a_deletion_that_is_killed_at_any_moment_can_be_done_again(trainer, tmp_path, monkeypatch, deletes):
    trainer(checkpoint_every=3, ema_decay=0.9).train()
    remaining, (unlink, rmdir), listed = [0], (os.unlink, os.rmdir), Path.iterdir
    # The order in a folder is the system's: here the worst.
    monkeypatch.setattr(
        Path, "iterdir", lambda path: iter(sorted(listed(path), key=lambda p: p.name != "config.json"))
    )

    def counted(remove):
        def removes(*args, **kwargs) -> None:
            if remaining[0] == 0:
                raise Killed
            remaining[0] -= 1
            remove(*args, **kwargs)

        return removes

    for name, remove in (("unlink", unlink), ("rmdir", rmdir)):
        monkeypatch.setattr(os, name, counted(remove))
    for moment in range(99):
        out = tmp_path / f"copy-{moment}"
        shutil.copytree(tmp_path / "run", out)
        remaining[0] = moment
        try:
            deletes(out)
        except Killed:
            remaining[0] = 99
            check_folder(out, {}, lambda saved, done: [], overwrite=True)
            deletes(out)
        else:
            break
    assert 9 < moment < 98


def test_a_run_that_is_training_is_not_deleted(trainer, tmp_path):
    trainer().train()
    lock, before = lock_folder(tmp_path / "run"), _content(tmp_path)
    with pytest.raises(ValueError, match="another run is training in"):
        delete_run(tmp_path / "run")
    lock.release()
    assert _content(tmp_path) == before
    delete_run(tmp_path / "run")
    delete_run(tmp_path / "run")  # there is nothing
    assert not list(tmp_path.iterdir())


def test_overwrite_of_nothing_is_a_fresh_run(trainer, state_of):
    assert state_of(trainer("a").train(overwrite=True)) == state_of(trainer("b").train())


def test_overwrite_and_resume_together_are_refused(trainer, tmp_path):
    trainer().train()
    before = _content(tmp_path)
    with pytest.raises(ValueError, match="choose one"):
        trainer().train(resume=True, overwrite=True)
    assert _content(tmp_path) == before


def test_bad_settings_do_not_cost_the_run_that_would_be_overwritten(tmp_path, trainer):
    trainer().train()
    before = _content(tmp_path)
    with pytest.raises(ValueError, match="does not divide"):
        trainer(masking=IndependentMasking(pair="mirror"), batch_size=7).train(overwrite=True)
    assert _content(tmp_path) == before


def test_run_killed_before_its_config_was_whole_can_start_again(trainer, tmp_path, state_of):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.new").write_text('{"unma')
    assert state_of(trainer().train(resume=True)) == state_of(trainer("other").train())


def test_saved_config_says_all_that_made_the_run(trainer, tmp_path):
    run = trainer(masking=ProgressiveUnmasking(stages=5, threshold=0.7), seed=4)
    run.train()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved == read_config(tmp_path / "run")
    assert saved["run"]["masking"] == {
        "type": "ProgressiveUnmasking",
        "stages": 5,
        "policy": "confidence",
        "threshold": 0.7,
        "time": {"type": "Uniform"},
        "pool": None,
    }
    assert saved["run"]["objective"] == {"type": type(RowMean()).__name__}
    assert saved["training"]["seed"] == 4
    assert saved["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert read_config(tmp_path) is None


def test_check_of_a_whole_run_refuses_without_building_anything(tmp_path):
    run = sudoku("puma")
    run.check(tmp_path / "absent")
    run.check(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    with pytest.raises(ValueError, match="holds no run of unmask"):
        run.check(tmp_path / "foreign", overwrite=True)


def test_exact_count_and_bernoulli_runs_differ(trainer, state_of):
    """Guards the tests above: what is named as changed does change the weights."""
    exact = trainer("exact", masking=IndependentMasking(mask=ExactCount())).train()
    bernoulli = trainer("bernoulli", masking=IndependentMasking(mask=Bernoulli())).train()
    assert state_of(exact)["model/model.safetensors"] != state_of(bernoulli)["model/model.safetensors"]


def test_second_writer_is_refused_while_the_first_trains(trainer, tmp_path, state_of):
    """The first run starts others in its own folder from its evaluation: resumed, overwritten, or plain."""
    refused = []

    def evaluate(model, last):
        before = _content(tmp_path)
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match="another run is training in"):
                trainer().train(**how)
            refused.append(how)
        assert _content(tmp_path) == before
        return {}

    last = trainer(evaluate=evaluate).train()
    assert len(refused) == 4  # at the start and at the end
    assert state_of(last) == state_of(trainer("alone").train())


def test_lock_is_the_systems_and_ends_with_its_process(trainer, tmp_path):
    """A process that is killed leaves the file, and no lock."""
    fork = multiprocessing.get_context("fork")
    held = fork.Event()

    def hold() -> None:
        lock = lock_folder(tmp_path / "run")  # noqa: F841  (what nobody keeps is let go)
        held.set()
        time.sleep(60)

    other = fork.Process(target=hold)
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(ValueError, match="another run is training"):
            trainer().train()
    finally:
        other.kill()
        other.join()
    trainer().train()


def test_lock_is_released_by_a_run_that_fails(trainer, stop_at):
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(0)).train()
    trainer().train(resume=True)

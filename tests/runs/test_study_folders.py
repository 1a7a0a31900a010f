"""A study's folders: nothing is done twice, nothing is lost, and what differs is not mixed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unmask import ProgressiveUnmasking
from unmask.cli.study import load_studies
from unmask.evaluation.hashes import data_hash
from unmask.evaluation.results import Report, Results
from unmask.evaluation.tasks import SudokuTask
from unmask.report.study import title_of
from unmask.runs.config import load_model
from unmask.runs.launch import _Child
from unmask.runs.study import Arm, changed

PUMA = ProgressiveUnmasking(stages=4)
FINAL = SudokuTask(split="kaidoku", clues=(17, 45), puzzles=4, final_puzzles=4)


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with the time of its last change and its content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_study):
    """A study with one run done, in this process."""
    study, out = tiny_study(finals={"kaidoku": FINAL}), tmp_path_factory.mktemp("study")
    job = replace(study.job(study.cells()[0], out), command="unmask study tiny.py")
    assert not job.is_whole
    job.check()
    job.run()
    return study, out, job


def test_a_whole_run_is_not_done_again_and_keeps_only_its_weights(whole):
    study, out, job = whole
    assert job.is_whole
    assert {path.name for path in job.last.iterdir()} == {"manifest.json", "model"}
    before = _files(out)
    study.job(study.cells()[0], out).run()
    assert _files(out) == before
    load_model(job.last)
    with pytest.raises(ValueError, match="holds weights alone"):
        job.config.train(job.out, resume=True)


def test_finals_are_measured_once_on_the_last_model(whole):
    _, _, job = whole
    saved = json.loads(job.final_path("kaidoku").read_text())
    assert saved["config"]["split"] == "kaidoku"
    result = saved["result"]
    again = FINAL.start()(load_model(job.last), True)
    assert (result["puzzles"], result["solved"]) == (again["puzzles"], again["solved"]) == (4, 0.0)
    assert result["loss"] == pytest.approx(again["loss"], rel=0.02)  # bf16 where the processor has it


def test_a_final_that_is_missing_is_measured_without_training(whole, tmp_path):
    study, out, _ = whole
    more = replace(study, finals={"kaidoku": FINAL, "random": replace(FINAL, puzzles=5)})
    before = _files(out)
    new = more.job(more.cells()[0], out)
    assert not new.is_whole
    new.run()
    assert new.is_whole
    after = _files(out)
    made = str(new.final_path("random").relative_to(out))
    assert {name: content for name, content in after.items() if name != made} == before
    new.final_path("random").unlink()


def test_a_changed_run_is_refused_with_what_differs(whole):
    study, out, _ = whole
    before = _files(out)
    for changes, message in (
        ({"base": replace(study.base, masking=PUMA)}, "holds another run.*masking"),
        ({"base": changed(study.base, {"training.batch_size": 4})}, "batch_size: 8 -> 4"),
        ({"finals": {"kaidoku": replace(FINAL, final_puzzles=5)}}, "final_puzzles: 4 -> 5.*Delete it"),
    ):
        other = replace(study, **changes)
        with pytest.raises(ValueError, match=message):
            other.run(out)
    assert _files(out) == before


def test_records_are_gathered_from_what_is_whole_and_are_the_same_again(whole):
    study, out, _ = whole
    records = study.gather(out)
    first = (out / "records.jsonl").read_bytes()
    assert study.gather(out) == records == [json.loads(line) for line in first.splitlines()]
    assert (out / "records.jsonl").read_bytes() == first
    (record,) = records
    assert [record[name] for name in ("study", "arm", "seed", "steps", "control", "role")] == [
        *("tiny", "standard", 1, 4, "standard", "compare")
    ]
    assert [point["step"] for point in record["curve"]] == [0, 2, 4]
    assert {"seconds", "tokens", "solved", "loss"} <= set(record["curve"][0])
    assert len(record["log"]["by_rate"]["loss"]) == 10
    assert (record["trace"]["columns"], len(record["trace"]["truth"])) == (9, 81)
    assert record["finals"]["kaidoku"]["result"]["puzzles"] == 4
    assert record["training"]["steps"] == 4
    assert record["config"]["masking"]["type"] == "IndependentMasking"
    assert record["provenance"]["torch"] == torch.__version__
    assert record["provenance"]["command"] == "unmask study tiny.py"
    assert record["provenance"]["rows"] == data_hash(study.base.data.load())[:16]
    assert record["provenance"]["held-out rows"] == data_hash(study.base.data.held_out())[:16]
    assert len(record["provenance"]["weights"]) == 16


def test_records_carry_how_the_study_is_shown(whole):
    """Reports are made from records alone: of these they have the measure and the title."""
    study, out, _ = whole
    assert "report" not in study.gather(out)[0]
    shown = replace(study, report=Report("loss", "Nine by nine"))
    results = Results.of(shown.gather(out))
    assert (results.measure.key, title_of(results)) == ("loss", "Nine by nine")
    assert Results.of(shown.gather(out), "solved").measure.key == "solved"
    plain = Results.of(study.gather(out))
    assert (plain.measure.key, title_of(plain)) == ("solved", "tiny: Sudoku")


def test_records_that_a_study_does_not_have_stop_it_before_they_are_lost(whole):
    study, out, _ = whole
    study.gather(out)
    before = _files(out)
    other = replace(study, arms={"clipped": {}}, control="clipped")
    with pytest.raises(ValueError, match=r"records of 1 runs .* first of tiny standard 1 4 .*name all arms"):
        other.run(out)
    assert _files(out) == before


def test_records_of_runs_that_lie_elsewhere_stay_and_those_of_no_run_go(whole, tmp_path):
    """Part of a study was run here, part on another machine, whose lines came with the folder."""
    study, out, _ = whole
    mine = study.gather(out)[0]
    theirs = [mine | {"arm": "puma", "seed": 1, "curve": []}, mine | {"arm": "gone"}, mine | {"study": "other"}]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (mine, *theirs)))
    assert study.gather(tmp_path) == [mine, theirs[0]]  # the study declares neither of the others
    shutil.copytree(out / "standard", tmp_path / "standard")
    (tmp_path / "puma" / "seed-1" / "steps-4").mkdir(parents=True)  # begun again here, and not whole
    assert study.gather(tmp_path) == [mine, theirs[0]]


def test_a_record_stays_until_its_run_is_whole_again(whole, tmp_path):
    """A final evaluation that the study has gained is not there yet."""
    study, out, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    records = study.gather(tmp_path)
    more = replace(study, finals={"kaidoku": FINAL, "random": FINAL})
    assert more.gather(tmp_path) == records
    more.job(more.cells()[0], tmp_path).run()
    (found,) = more.gather(tmp_path)
    assert found["finals"].keys() == {"kaidoku", "random"}


@pytest.mark.parametrize("change", [{"training.learning_rate": 0.5}, {"model.width": 32}])
def test_what_one_base_trained_does_not_stand_beside_what_another_does(whole, tmp_path, change):
    """Though only a new arm is asked for: its record would be compared with the old ones."""
    study, out, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    study.gather(tmp_path)
    before = _files(tmp_path)
    arms = {**study.arms, "new": {"masking": ProgressiveUnmasking(stages=2)}}
    other = replace(study, base=changed(study.base, change), arms=arms)
    with pytest.raises(ValueError, match=f"another run.*{next(iter(change)).split('.')[1]}"):
        other.run(tmp_path, other.cells(["new"]))
    with pytest.raises(ValueError, match="holds another run"):
        other.gather(tmp_path)
    assert _files(tmp_path) == before


def test_a_run_killed_before_it_wrote_where_it_was_made_writes_it_when_it_goes_on(whole, tmp_path):
    study, out, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    job = study.job(study.cells()[0], tmp_path)
    made = job.out / "provenance.json"
    before = json.loads(made.read_text())
    made.unlink()
    assert not job.is_whole
    job.run()
    assert json.loads(made.read_text()) == {k: v for k, v in before.items() if k != "command"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 18}, "width 16, here 18"),
        ({"layers": 2}, "layers 1, here 2"),
        ({"heads": 4}, "heads 2, here 4"),  # the weights have the same sizes, and mean something else
    ],
)
def test_weights_of_another_model_are_refused_by_its_sizes(whole, tmp_path, capfd, change, words):
    study, _, job = whole
    config = changed(study.base, {f"model.{name}": value for name, value in change.items()} | {"start": str(job.out)})
    with pytest.raises(ValueError, match=f"the model to start from, in .*, has other sizes: {words}"):
        config.train(tmp_path / "run")
    assert "ignore_mismatched_sizes" not in "".join(capfd.readouterr())


def test_more_layers_than_the_model_has_are_refused_too(whole, tmp_path):
    """Theirs would be left out without a word."""
    study, _, _ = whole
    deep = changed(study.base, {"model.layers": 2, "training.steps": 1, "training.evaluate_every": None})
    deep.train(tmp_path / "deep")
    with pytest.raises(ValueError, match="has other sizes: layers 2, here 1"):
        changed(study.base, {"start": str(tmp_path / "deep")}).train(tmp_path / "run")


def test_weights_of_other_sizes_are_refused_in_words(whole):
    study, _, job = whole
    model = changed(study.base, {"model.width": 18}).model.build()
    with pytest.raises(ValueError, match=r"holds weights of other sizes: .* \[.*16.*\], here \[.*18.*\]"):
        model.load_weights(job.last / "model")


def test_a_last_evaluation_that_failed_is_made_before_a_run_is_whole(tiny_study, tmp_path, monkeypatch):
    """Its step is saved, and the evaluation before it would stand for the end."""

    def fails(self, held_out):
        return lambda model, last: 1 / (not last) and {}

    study = tiny_study()
    job = study.job(study.cells()[0], tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(SudokuTask, "start", fails)
        with pytest.raises(ZeroDivisionError):
            job.run()
    assert job.steps_done == 4
    assert not job.is_trained
    job.run()
    (record,) = study.gather(tmp_path)
    assert [point["step"] for point in record["curve"]] == [0, 2, 4]


@pytest.mark.slow
def test_a_failing_arm_stops_no_other(tmp_path, tiny_study):
    arms = {"standard": {}, "broken": {"model.positions": 3}, "after": Arm(start="broken"), "puma": {"masking": PUMA}}
    study = tiny_study(arms=arms)
    with pytest.raises(ValueError, match=r"2 of 4 runs failed.*'broken/seed-1/steps-4' failed.*positions"):
        study.run(tmp_path, workers=2)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == ["standard", "puma"]
    before = _files(tmp_path / "puma")
    with pytest.raises(ValueError, match="2 of 4 runs failed"):
        study.run(tmp_path, workers=2)
    assert _files(tmp_path / "puma") == before


@pytest.mark.slow
def test_a_study_killed_at_any_moment_is_finished_by_the_same_command(tmp_path):
    """The driver is killed, and its runs end with it; the same command leaves the weights of an unbroken run."""
    source = """
from dataclasses import replace
from unmask import ProgressiveUnmasking
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.evaluation.results import Report, Results
from unmask.report.study import title_of
from unmask.runs.study import Study
from unmask.evaluation.tasks import SudokuTask
from unmask.training import TrainingConfig

base = replace(
    sudoku(), data=SudokuData(limit=20), model=SudokuModel(layers=1, width=16, heads=2),
    training=TrainingConfig(steps=200, batch_size=8, evaluate_every=100, log_every=1, threads=1),
    evaluation=SudokuTask(clues=(40, 45), puzzles=4, final_puzzles=8),
)
arms = {"standard": {}, "puma": {"masking": ProgressiveUnmasking(stages=4)}}
study = Study("tiny", base, arms, control="standard", seeds=(1,), checkpoint=0.02)
"""
    (tmp_path / "study.py").write_text(source)
    command = [sys.executable, "-m", "unmask.cli", "study", "study.py", "--jobs", "2", "--out", "killed"]
    killed = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    folders = [tmp_path / "killed" / arm / "seed-1" / "steps-200" / "checkpoints" for arm in ("standard", "puma")]
    until = time.monotonic() + 120
    while not all(any(folder.glob("step-*")) for folder in folders):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(1)  # the runs have nobody to train for, and end
    assert not any((folder / "step-00000200").exists() for folder in folders)
    subprocess.run(command, cwd=tmp_path, check=True)
    (study,) = load_studies(tmp_path / "study.py")
    for cell in study.cells():
        killed, alone = (study.job(cell, tmp_path / name) for name in ("killed", "alone"))
        alone.run()
        weights = Path("model") / "model.safetensors"
        assert (killed.last / weights).read_bytes() == (alone.last / weights).read_bytes()
    assert len((tmp_path / "killed" / "records.jsonl").read_text().splitlines()) == 2


def test_a_run_that_fails_with_bytes_that_are_no_text_ends_no_other(tmp_path):
    """What it has written was read as UTF-8, and the whole study ended by what is none."""
    log = tmp_path / "seed-1.log"
    log.write_bytes(b"terminate called: \xff\xfe\nBoom\n")
    child = SimpleNamespace(log=log, job=SimpleNamespace(name="arm/seed-1"))
    said = _Child.complaint(child, -6)  # type: ignore[arg-type]
    assert said.startswith("the run 'arm/seed-1' failed (exit code -6): terminate called:")
    assert "Boom" in said

"""Studies: which runs there are, that nothing is done twice, and that nothing is lost."""

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

import pytest
import torch

from unmask import Clipped, IndependentMasking, ProgressiveUnmasking
from unmask.cli.study import load_studies
from unmask.evaluation.records import data_hash
from unmask.evaluation.results import Report, Results
from unmask.evaluation.tasks import SudokuTask
from unmask.parts import NoEvaluation
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.report.study import title_of
from unmask.runs.config import RunConfig, load_model
from unmask.runs.study import Arm, Study, changed
from unmask.store.metrics import read_metrics
from unmask.training import TrainingConfig

BASE = replace(
    sudoku(),
    data=SudokuData(limit=20),
    model=SudokuModel(layers=1, width=16, heads=2),
    training=TrainingConfig(steps=4, batch_size=8, warmup_steps=2, evaluate_every=2, log_every=1, threads=1),
    evaluation=SudokuTask(clues=(40, 45), puzzles=4, final_puzzles=8),
)
PUMA = ProgressiveUnmasking(stages=4)
FINALS = {"kaidoku": SudokuTask(split="kaidoku", clues=(17, 45), puzzles=4, final_puzzles=4)}


def _study(**changes) -> Study:
    settings = {"name": "tiny", "base": BASE, "arms": {"standard": {}, "puma": {"masking": PUMA}}, "seeds": (1,)}
    return Study(**{**settings, "control": "standard", **changes})


def _names(cells) -> list[str]:
    return [cell.name for cell in cells]


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with the time of its last change and its content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_study_has_every_arm_at_every_seed_and_budget():
    study = _study(seeds=(3, 1), budgets=(2, 8))
    assert _names(study.cells()) == [
        f"{arm}/seed-{seed}/steps-{steps}" for seed in (1, 3) for steps in (2, 8) for arm in ("standard", "puma")
    ]
    assert _names(study.cells(["puma"], [3], [8])) == ["puma/seed-3/steps-8"]
    assert {cell.config.masking for cell in study.cells(["puma"])} == {PUMA}
    for cell in study.cells():
        assert (cell.config.training.seed, cell.config.training.steps) == (cell.seed, cell.steps)


def test_arms_may_have_seeds_and_budgets_of_their_own():
    arms = {
        "standard": {},
        "few": Arm({"masking": PUMA}, seeds=(1,)),
        "long": Arm(budgets=(8,)),
        "tried": Arm(seeds=()),
    }
    study = _study(arms=arms, seeds=(1, 2), budgets=(2, 4), screening=(7,))
    assert len(study.cells(["standard"])) == 4
    assert _names(study.cells(["few"])) == ["few/seed-1/steps-2", "few/seed-1/steps-4"]
    assert _names(study.cells(["long"])) == ["long/seed-1/steps-8", "long/seed-2/steps-8"]
    assert study.cells(["tried"]) == []
    screened = study.cells(screen=True)
    assert {cell.seed for cell in screened} == {7}
    assert {cell.role for cell in screened} == {"screen"}
    assert {cell.arm for cell in screened} == set(arms)


def test_pretraining_comes_before_the_arms_that_start_from_it_and_is_made_once():
    arms = {
        "standard": Arm(start="pretrained"),
        "own": Arm(start="seeded"),
        "pretrained": Arm({"masking": PUMA}, seeds=(0,), budgets=(2, 6)),
        "seeded": Arm(budgets=(6,)),
    }
    study = _study(arms=arms, seeds=(1, 2))
    names = _names(study.cells(["standard", "own"]))
    assert names.count("pretrained/seed-0/steps-6") == 1
    assert "pretrained/seed-0/steps-2" not in names
    for seed in (1, 2):
        assert names.index("pretrained/seed-0/steps-6") < names.index(f"standard/seed-{seed}/steps-4")
        assert names.index(f"seeded/seed-{seed}/steps-6") < names.index(f"own/seed-{seed}/steps-4")
    assert {cell.role for cell in study.cells() if cell.arm in ("pretrained", "seeded")} == {"start"}
    assert [cell.seed for cell in replace(study, screening=(5,)).cells(["standard"], screen=True)] == [0, 5]


def test_schedule_and_evaluations_follow_the_budget():
    study = _study(budgets=(10, 200), warmup=0.1, evaluate=0.05, checkpoint=0.5)
    short, long = (cell.config.training for cell in study.cells(["standard"]))
    assert (short.warmup_steps, short.evaluate_every, short.checkpoint_every) == (1, 1, 5)
    assert (long.warmup_steps, long.evaluate_every, long.checkpoint_every) == (20, 10, 100)
    plain = _study(budgets=(10,)).cells()[0].config.training
    assert (plain.warmup_steps, plain.evaluate_every) == (2, 2)


def test_a_change_may_look_at_the_horizon():
    def clip(config: RunConfig) -> RunConfig:
        return replace(config, masking=IndependentMasking(Clipped(1 / config.training.steps, 1.0)))

    study = _study(arms={"standard": {}, "clipped": clip}, budgets=(4, 8))
    assert [cell.config.masking.time.low for cell in study.cells(["clipped"])] == [1 / 4, 1 / 8]


def test_changed_takes_fields_by_their_names():
    config = changed(BASE, {"training.batch_size": 3, "model.width": 15, "model.heads": 3, "masking": PUMA})
    assert (config.training.batch_size, config.model.width, config.masking) == (3, 15, PUMA)
    assert (config.model.layers, config.training.steps) == (1, 4)
    assert changed(BASE, {"masking": PUMA, "masking.stages": 9}).masking == replace(PUMA, stages=9)
    with pytest.raises(ValueError, match="TrainingConfig has no field 'batchsize'; did you mean 'batch_size'"):
        changed(BASE, {"training.batchsize": 3})
    with pytest.raises(ValueError, match="int has no field 'x'"):
        changed(BASE, {"training.steps.x": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "standerd"}, "no arm is called 'standerd'; did you mean 'standard'"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"seeds": (1, 2), "screening": (2, 3)}, r"seeds \[2\] both choose and judge"),
        ({"budgets": (0,)}, "budgets must be an integer of at least 1, got 0"),
        ({"warmup": 2}, r"warmup is a share of the budget in \[0, 1\], got 2"),
        ({"arms": {"standard": {}, "a/b": {}}}, "an? arm's name is a folder's.* got 'a/b'"),
        ({"name": ".."}, "a study's name is a folder's"),
        ({"arms": {"standard": {"model.widht": 3}}}, "arm 'standard': SudokuModel has no field 'widht'"),
        ({"arms": {"standard": {"training.steps": 3}}}, "arm 'standard' changes training.steps"),
        ({"arms": {"standard": Arm(start="b"), "b": Arm(start="standard")}}, "start from one another in a circle"),
        ({"arms": {"standard": {}, "b": Arm(start="standard")}}, "'standard' is what others start from"),
        ({"arms": {"standard": Arm(start="b"), "b": Arm(seeds=(3, 4))}}, "cannot start from 'b' at seed 1"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _study(**changes)


@pytest.mark.parametrize(
    ("asked", "message"),
    [((["pume"],), "has no arm pume"), ((None, [9]), "has no seed 9"), ((None, None, [9]), "has no budget 9")],
)
def test_runs_that_a_study_does_not_have_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        _study().cells(*asked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study with one run done, in this process."""
    study, out = _study(finals=FINALS), tmp_path_factory.mktemp("study")
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
    again = FINALS["kaidoku"].start()(load_model(job.last), True)
    assert (result["puzzles"], result["solved"]) == (again["puzzles"], again["solved"]) == (4, 0.0)
    assert result["loss"] == pytest.approx(again["loss"], rel=0.02)  # bf16 where the processor has it


def test_a_final_that_is_missing_is_measured_without_training(whole, tmp_path):
    study, out, _ = whole
    more = replace(study, finals={**FINALS, "random": replace(FINALS["kaidoku"], puzzles=5)})
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
        ({"base": replace(BASE, masking=PUMA)}, "holds another run.*masking"),
        ({"base": changed(BASE, {"training.batch_size": 4})}, "batch_size: 8 -> 4"),
        ({"finals": {"kaidoku": replace(FINALS["kaidoku"], final_puzzles=5)}}, "final_puzzles: 4 -> 5.*Delete it"),
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
    assert record["provenance"]["rows"] == data_hash(BASE.data.load())[:16]
    assert record["provenance"]["held-out rows"] == data_hash(BASE.data.held_out())[:16]
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": sudoku}, "base is a run's config"),
        ({"seeds": 5}, "seeds are a tuple, got 5"),
        ({"budgets": 500}, "budgets are a tuple, got 500"),
        ({"seeds": ()}, "a study needs seeds"),
        ({"finals": [1]}, "finals are a dict by name"),
        ({"arms": ["standard"]}, "arms are a dict by name"),
        ({"arms": {"standard": PUMA}}, "arm 'standard' is a change of the base.*got ProgressiveUnmasking"),
        ({"arms": {"standard": "puma"}}, "arm 'standard' is a change of the base.*got 'puma'"),
        ({"arms": {"standard": {"masking": "puma"}}}, r"RunConfig\.masking takes a config, as .*got 'puma'"),
        ({"arms": {"standard": lambda config: None}}, "arm 'standard' is to return a config, got None"),
    ],
)
def test_what_makes_no_study_is_refused_with_what_does(changes, message):
    with pytest.raises(ValueError, match=message):
        _study(**changes)


def test_a_start_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    arms = {"standard": Arm(start="pretraind"), "pretrained": Arm()}
    with pytest.raises(ValueError, match="neither an arm nor a run's folder; did you mean 'pretrained'"):
        _study(arms=arms).run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study = (", r"broken\.py, line 1: SyntaxError"),
        ("x = 1\nstudy = Study()", r"broken\.py, line 2: NameError: name 'Study'"),
        ("import nowhere_to_be_found", r"broken\.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_study_file_that_cannot_be_read_is_named_with_the_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_studies(tmp_path / "broken.py")


def test_two_studies_of_one_name_in_a_file_are_refused(tmp_path):
    """Also one that is imported: its records would be written over those of the file's own."""
    made = "Study('tiny', sudoku(), {'a': {}}, 'a')"
    text = "from unmask.recipes import sudoku\nfrom unmask.runs.study import Study\n"
    text += f"study = {made}\nother = {made}\n"
    (tmp_path / "twice.py").write_text(text)
    with pytest.raises(ValueError, match=r"two studies called 'tiny'"):
        load_studies(tmp_path / "twice.py")


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
    more = replace(study, finals={**FINALS, "random": FINALS["kaidoku"]})
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
    other = replace(study, base=changed(BASE, change), arms=arms)
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


def test_devices_that_are_not_there_are_refused_before_a_run_starts(tmp_path):
    study = _study()
    with pytest.raises(ValueError, match=r"devices 0, 99: here are .* GPUs, numbered from 0 \(--devices\)"):
        study.run(tmp_path, devices=(0, 99))
    assert not (tmp_path / "standard").exists()


def test_an_arm_starts_from_the_weights_of_another(tmp_path):
    study = _study(arms={"standard": Arm({"masking": PUMA}, start="first"), "first": Arm(seeds=(0,), budgets=(2,))})
    first, second = (study.job(cell, tmp_path) for cell in study.cells())
    with pytest.raises(ValueError, match="neither a run's folder nor a checkpoint"):
        second.run()
    first.run()
    second.run()
    ended, began = read_metrics(first.out, "evaluation")[-1], read_metrics(second.out, "evaluation")[0]
    other = read_metrics(first.out, "evaluation")[0]
    judged = BASE.evaluation.start()(load_model(first.last), False)
    assert began["loss"] == pytest.approx(judged["loss"], rel=0.02)
    assert abs(began["loss"] - other["loss"]) > 0
    records = {record["arm"]: record for record in study.gather(tmp_path)}
    assert records["standard"]["config"]["start"] == "first/seed-0/steps-2"
    assert records["first"]["role"] == "start"
    assert ended["step"] == 2


def test_evaluating_nothing_now_and_then_is_refused(tmp_path):
    config = replace(BASE, evaluation=NoEvaluation())
    with pytest.raises(ValueError, match="evaluate_every is 2, and this run evaluates nothing"):
        config.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    replace(config, training=replace(BASE.training, evaluate_every=None)).check(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 18}, "width 16, here 18"),
        ({"layers": 2}, "layers 1, here 2"),
        ({"heads": 4}, "heads 2, here 4"),  # the weights have the same sizes, and mean something else
    ],
)
def test_weights_of_another_model_are_refused_by_its_sizes(whole, tmp_path, capfd, change, words):
    _, _, job = whole
    config = changed(BASE, {f"model.{name}": value for name, value in change.items()} | {"start": str(job.out)})
    with pytest.raises(ValueError, match=f"the model to start from, in .*, has other sizes: {words}"):
        config.train(tmp_path / "run")
    assert "ignore_mismatched_sizes" not in "".join(capfd.readouterr())


def test_more_layers_than_the_model_has_are_refused_too(whole, tmp_path):
    """Theirs would be left out without a word."""
    deep = changed(BASE, {"model.layers": 2, "training.steps": 1, "training.evaluate_every": None})
    deep.train(tmp_path / "deep")
    with pytest.raises(ValueError, match="has other sizes: layers 2, here 1"):
        changed(BASE, {"start": str(tmp_path / "deep")}).train(tmp_path / "run")


def test_weights_of_other_sizes_are_refused_in_words(whole):
    _, _, job = whole
    model = changed(BASE, {"model.width": 18}).model.build()
    with pytest.raises(ValueError, match=r"holds weights of other sizes: .* \[.*16.*\], here \[.*18.*\]"):
        model.load_weights(job.last / "model")


@pytest.mark.slow
def test_a_failing_arm_stops_no_other(tmp_path):
    arms = {"standard": {}, "broken": {"model.positions": 3}, "after": Arm(start="broken"), "puma": {"masking": PUMA}}
    study = _study(arms=arms)
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

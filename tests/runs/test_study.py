"""Studies: which runs there are, from which weights, and what is refused before any starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask import Clipped, IndependentMasking, ProgressiveUnmasking
from unmask.cli.study import load_studies
from unmask.parts import NoEvaluation
from unmask.recipes import sudoku
from unmask.runs.config import RunConfig, load_model
from unmask.runs.study import Arm, changed
from unmask.store.metrics import read_metrics

PUMA = ProgressiveUnmasking(stages=4)


def _names(cells) -> list[str]:
    return [cell.name for cell in cells]


def test_a_study_has_every_arm_at_every_seed_and_budget(tiny_study):
    study = tiny_study(seeds=(3, 1), budgets=(2, 8))
    assert _names(study.cells()) == [
        f"{arm}/seed-{seed}/steps-{steps}" for seed in (1, 3) for steps in (2, 8) for arm in ("standard", "puma")
    ]
    assert _names(study.cells(["puma"], [3], [8])) == ["puma/seed-3/steps-8"]
    assert {cell.config.masking for cell in study.cells(["puma"])} == {PUMA}
    for cell in study.cells():
        assert (cell.config.training.seed, cell.config.training.steps) == (cell.seed, cell.steps)


def test_arms_may_have_seeds_and_budgets_of_their_own(tiny_study):
    arms = {
        "standard": {},
        "few": Arm({"masking": PUMA}, seeds=(1,)),
        "long": Arm(budgets=(8,)),
        "tried": Arm(seeds=()),
    }
    study = tiny_study(arms=arms, seeds=(1, 2), budgets=(2, 4), screening=(7,))
    assert len(study.cells(["standard"])) == 4
    assert _names(study.cells(["few"])) == ["few/seed-1/steps-2", "few/seed-1/steps-4"]
    assert _names(study.cells(["long"])) == ["long/seed-1/steps-8", "long/seed-2/steps-8"]
    assert study.cells(["tried"]) == []
    screened = study.cells(screen=True)
    assert {cell.seed for cell in screened} == {7}
    assert {cell.role for cell in screened} == {"screen"}
    assert {cell.arm for cell in screened} == set(arms)


def test_pretraining_comes_before_the_arms_that_start_from_it_and_is_made_once(tiny_study):
    arms = {
        "standard": Arm(start="pretrained"),
        "own": Arm(start="seeded"),
        "pretrained": Arm({"masking": PUMA}, seeds=(0,), budgets=(2, 6)),
        "seeded": Arm(budgets=(6,)),
    }
    study = tiny_study(arms=arms, seeds=(1, 2))
    names = _names(study.cells(["standard", "own"]))
    assert names.count("pretrained/seed-0/steps-6") == 1
    assert "pretrained/seed-0/steps-2" not in names
    for seed in (1, 2):
        assert names.index("pretrained/seed-0/steps-6") < names.index(f"standard/seed-{seed}/steps-4")
        assert names.index(f"seeded/seed-{seed}/steps-6") < names.index(f"own/seed-{seed}/steps-4")
    assert {cell.role for cell in study.cells() if cell.arm in ("pretrained", "seeded")} == {"start"}
    assert [cell.seed for cell in replace(study, screening=(5,)).cells(["standard"], screen=True)] == [0, 5]


def test_schedule_and_evaluations_follow_the_budget(tiny_study):
    study = tiny_study(budgets=(10, 200), warmup=0.1, evaluate=0.05, checkpoint=0.5)
    short, long = (cell.config.training for cell in study.cells(["standard"]))
    assert (short.warmup_steps, short.evaluate_every, short.checkpoint_every) == (1, 1, 5)
    assert (long.warmup_steps, long.evaluate_every, long.checkpoint_every) == (20, 10, 100)
    plain = tiny_study(budgets=(10,)).cells()[0].config.training
    assert (plain.warmup_steps, plain.evaluate_every) == (2, 2)


def test_a_change_may_look_at_the_horizon(tiny_study):
    def clip(config: RunConfig) -> RunConfig:
        return replace(config, masking=IndependentMasking(Clipped(1 / config.training.steps, 1.0)))

    study = tiny_study(arms={"standard": {}, "clipped": clip}, budgets=(4, 8))
    assert [cell.config.masking.time.low for cell in study.cells(["clipped"])] == [1 / 4, 1 / 8]


def test_changed_takes_fields_by_their_names(tiny_study):
    config = changed(
        tiny_study().base, {"training.batch_size": 3, "model.width": 15, "model.heads": 3, "masking": PUMA}
    )
    assert (config.training.batch_size, config.model.width, config.masking) == (3, 15, PUMA)
    assert (config.model.layers, config.training.steps) == (1, 4)
    assert changed(tiny_study().base, {"masking": PUMA, "masking.stages": 9}).masking == replace(PUMA, stages=9)
    with pytest.raises(ValueError, match="TrainingConfig has no field 'batchsize'; did you mean 'batch_size'"):
        changed(tiny_study().base, {"training.batchsize": 3})
    with pytest.raises(ValueError, match="int has no field 'x'"):
        changed(tiny_study().base, {"training.steps.x": 3})


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
def test_a_study_that_cannot_be_is_refused(changes, message, tiny_study):
    with pytest.raises(ValueError, match=message):
        tiny_study(**changes)


@pytest.mark.parametrize(
    ("asked", "message"),
    [((["pume"],), "has no arm pume"), ((None, [9]), "has no seed 9"), ((None, None, [9]), "has no budget 9")],
)
def test_runs_that_a_study_does_not_have_are_refused(asked, message, tiny_study):
    with pytest.raises(ValueError, match=message):
        tiny_study().cells(*asked)


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
def test_what_makes_no_study_is_refused_with_what_does(changes, message, tiny_study):
    with pytest.raises(ValueError, match=message):
        tiny_study(**changes)


def test_a_start_that_is_not_there_is_refused_before_anything_runs(tmp_path, tiny_study):
    arms = {"standard": Arm(start="pretraind"), "pretrained": Arm()}
    with pytest.raises(ValueError, match="neither an arm nor a run's folder; did you mean 'pretrained'"):
        tiny_study(arms=arms).run(tmp_path)
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


def test_devices_that_are_not_there_are_refused_before_a_run_starts(tmp_path, tiny_study):
    study = tiny_study()
    with pytest.raises(ValueError, match=r"devices 0, 99: here are .* GPUs, numbered from 0 \(--devices\)"):
        study.run(tmp_path, devices=(0, 99))
    assert not (tmp_path / "standard").exists()


def test_an_arm_starts_from_the_weights_of_another(tmp_path, tiny_study):
    study = tiny_study(
        arms={"standard": Arm({"masking": PUMA}, start="first"), "first": Arm(seeds=(0,), budgets=(2,))}
    )
    first, second = (study.job(cell, tmp_path) for cell in study.cells())
    with pytest.raises(ValueError, match="neither a run's folder nor a checkpoint"):
        second.run()
    first.run()
    second.run()
    ended, began = read_metrics(first.out, "evaluation")[-1], read_metrics(second.out, "evaluation")[0]
    other = read_metrics(first.out, "evaluation")[0]
    judged = tiny_study().base.evaluation.start()(load_model(first.last), False)
    assert began["loss"] == pytest.approx(judged["loss"], rel=0.02)
    assert abs(began["loss"] - other["loss"]) > 0
    records = {record["arm"]: record for record in study.gather(tmp_path)}
    assert records["standard"]["config"]["start"] == "first/seed-0/steps-2"
    assert records["first"]["role"] == "start"
    assert ended["step"] == 2


def test_evaluating_nothing_now_and_then_is_refused(tmp_path, tiny_study):
    config = replace(tiny_study().base, evaluation=NoEvaluation())
    with pytest.raises(ValueError, match="evaluate_every is 2, and this run evaluates nothing"):
        config.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    replace(config, training=replace(tiny_study().base.training, evaluate_every=None)).check(tmp_path / "run")

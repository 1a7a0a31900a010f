"""`unmask study`: what a study file may be, and what is said of one that is none."""

from __future__ import annotations

import sys

import pytest

GOOD = """
from unmask.recipes import sudoku
from unmask.runs.study import Study

study = Study("{name}", sudoku(), {{"standard": {{}}, "puma": sudoku_puma}}, "standard", seeds=(1, 2), budgets=(5, 9))
""".replace("sudoku_puma", '{{"masking": sudoku("puma").masking}}')


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write a study file of a name that no test shares, as modules are kept by name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text.format(name=name))
        return f"{name}.py"

    return write


def test_list_tells_what_is_to_do_and_does_nothing(command, file, tmp_path):
    words = ["study", file("listed", GOOD), "--list"]
    code, out, _ = command(*words)
    assert code == 0
    assert out.count("to do") == 8
    assert "runs/listed/puma/seed-2/steps-9: to do" in out
    assert "mine/standard/seed-1/steps-9" in command(*words, "--out", "mine")[1]
    chosen = command(*words, "--only", "puma", "--seeds", "2", "--budgets", "5")[1]
    assert chosen == "runs/listed/puma/seed-2/steps-5: to do"
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_several_studies_of_a_file_have_folders_of_their_own(command, file):
    text = GOOD + GOOD.replace("study = ", "other = ").replace("{name}", "{name}-other")
    out = command("study", file("several", text), "--list", "--out", "both")[1]
    assert "both/several/puma/seed-1/steps-5" in out
    assert "both/several-other/puma/seed-1/steps-5" in out


def test_an_arm_may_be_of_one_study_alone(command, file):
    other = GOOD.replace("study = ", "other = ").replace("{name}", "{name}-other")
    text = GOOD + other.replace('"puma":', '"chain":')
    words = ["study", file("apart", text), "--list", "--seeds", "1", "--budgets", "5", "--only"]
    assert command(*words, "chain")[1] == "runs/apart-other/chain/seed-1/steps-5: to do"
    assert command(*words, "chain", "puma")[1].count("to do") == 2
    assert "chian" in command(*words, "puma", "chian")[2]
    code, _, err = command(*words)
    assert (code, err) == (2, "unmask: --only names no arm")


@pytest.mark.parametrize(
    ("name", "text", "words", "message"),
    [
        ("empty", "", [], "empty.py defines no study"),
        ("wrong", GOOD, ["--only", "pume"], "unknown arm 'pume'"),
        ("late", GOOD, ["--seeds", "3"], "has no seed 3"),
        ("unscreened", GOOD, ["--screen"], "has no runs to screen"),
        ("json", GOOD, [], "another module is called 'json'"),
    ],
)
def test_mistakes_are_explained(command, file, name, text, words, message):
    before = list(sys.path)
    code, _, err = command("study", file(name, text), *words, "--list")
    assert code == 2
    assert message in err
    assert name != "json" or sys.path == before  # else the runs of the next study would import it


def test_a_study_that_is_refused_tells_of_no_records(command, file):
    """It named records that are not there, and a system's error as the reason for no report."""
    text = GOOD.replace("import Study", "import Arm, Study").replace("{{}}", 'Arm(start="nowhere")')
    code, out, err = command("study", file("refused", text), "--out", "mine", "--jobs", "1")
    assert (code, out) == (2, "")
    assert "starts from 'nowhere'" in err


def test_files_that_are_no_python_are_refused(command, tmp_path):
    assert "is no Python file" in command("study", str(tmp_path / "nowhere.py"))[2]
    assert "is no Python file" in command("study", str(tmp_path))[2]

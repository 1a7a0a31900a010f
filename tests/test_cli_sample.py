"""`unmask sample` on puzzles: every cell of an unseen one, and what is mistyped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unmask.cli import main

TINY = "--model.layers=1 --model.width=16 --model.heads=2 --steps=3 --batch-size=8 --data.limit=20 --threads=1"
TINY += " --evaluation.puzzles=10 --evaluation.final-puzzles=10"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    main(
        [
            "train",
            "sudoku",
            *TINY.split(),
            "--ema-decay=0.5",
            "--evaluation.puzzles=10",
            "--evaluation.final-puzzles=10",
            "--out",
            str(out),
        ]
    )
    return out


@pytest.mark.parametrize("which", ["run", "checkpoint"])
def test_sample_shows_every_cell_of_an_unseen_puzzle(command, trained, which):
    folder = trained if which == "run" else trained / "checkpoints" / "step-00000003"
    code, out, _ = command("sample", str(folder), "--number", "2", "--policy", "margin")
    assert code == 0
    clues = int(re.search(r"An unseen puzzle with (\d+) clues", out)[1])
    story = out[out.index("Every cell in the order") :]
    assert len(re.findall(r"row [1-9], column [1-9]: [0-9]", story)) == 81 - clues
    assert re.search(rf"(not )?solved: {81 - clues} cells, least sure \d", story)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "neither a run's folder nor a checkpoint"),
        (["{run}", "--policy", "margn"], "unknown policy 'margn'; did you mean 'margin'"),
        (["{run}", "--policy", "stored"], "the policy 'stored' reads a data set's rows"),
        (["{run}/checkpoints/step-00000003/model"], "no run of unmask"),
        (["{run}", "--split", "tset"], "invalid choice 'tset'"),
        (["{run}", "--number", "x"], "--number: invalid literal for int"),
        (["{run}", "--prompt", "the"], "--prompt is for texts"),
        (["{run}", "--device", "gpu"], "--device gpu cannot be used"),
        (["--texts", "2"], "PATH"),
    ],
)
def test_sample_explains_mistakes(command, trained, words, message):
    code, _, err = command("sample", *(word.format(run=trained) for word in words))
    assert code == 2
    assert re.search(message, err), err


def test_sample_of_a_run_without_a_checkpoint_or_with_a_foreign_config(command, trained, tmp_path):
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    code, _, err = command("sample", str(tmp_path))
    assert code == 2
    assert "has no checkpoint yet" in err

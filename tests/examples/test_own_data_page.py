"""The commands of docs/own_data.md, as they stand there, on small files and for few steps."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset

from unmask.cli import main
from unmask.runs.config import load_run

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
FEW = [
    "--steps",
    "2",
    "--model.layers",
    "1",
    "--model.width",
    "16",
    "--model.heads",
    "2",
    "--threads",
    "1",
    "--tracker",
    "none",
]
FEW_RUNS = [*FEW, "--seeds", "1"]


def commands(heading: str) -> list[list[str]]:
    """The words of each command below a heading, without the program's name."""
    part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert part, heading
    return [shlex.split(line)[1:] for line in part[1].splitlines() if line.startswith("    unmask ")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with small files under the page's names."""
    chance = random.Random(0)
    (tmp_path / "qa.csv").write_text("question,answer\n" + "".join(f"{i} and {i},{2 * i}\n" for i in range(60)))
    proteins = ["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=20)) for _ in range(60)]
    (tmp_path / "proteins.fasta").write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins)))
    (tmp_path / "texts").mkdir()
    for i in range(40):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"The cat number {i} sat on the mat. " * 8)
    tokens = [[i % 9, i % 7, i % 5] for i in range(80)]
    rows = Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 3] * 80})
    rows.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "my_rows.py").write_text(
        "from datasets import Dataset\n\n\ndef dataset():\n    return Dataset.from_parquet('rows.parquet')\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("heading", ["A CSV of prompts and answers", "A FASTA file", "A folder of texts"])
@pytest.mark.slow
def test_two_commands_make_a_report(here, heading, capsys):
    compared, reported = commands(heading)
    main([*compared, *FEW_RUNS])
    said = capsys.readouterr()
    assert "3 of 3 runs" in said.err
    assert "What was not typed was chosen from the data" in said.err
    main(reported)
    out = here / compared[-1]
    assert (out / "summary.json").is_file() or list(out.glob("summary*"))


def test_every_kind_trains_by_the_page_s_options(here, capsys):
    for heading in ("A CSV of prompts and answers", "A FASTA file", "A folder of texts"):
        words = commands(heading)[0]
        words = ["train", *words[1 : words.index("--arms")], "--out", "runs/one/" + words[1]]
        main([*words, *FEW])
        config, _ = load_run(here / words[-1])
        assert config.training.steps == 2
    metrics = (here / "runs/one/sequences/metrics.jsonl").read_text()
    assert '"infilled"' in metrics
    assert '"samples"' in metrics


def test_rows_train_and_a_function_needs_its_module(here):
    disk, function = commands("Rows that you have made")
    main([*disk, *FEW])
    main([*function, *FEW])
    without = [word for i, word in enumerate(function) if "--module" not in (word, function[i - 1])]
    with pytest.raises(SystemExit):
        main([*without, *FEW])


def test_a_run_opens_from_another_folder(here, monkeypatch, tmp_path_factory):
    words = commands("A CSV of prompts and answers")[0]
    main(["train", *words[1 : words.index("--arms")], "--out", "runs/moved", *FEW])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config, _ = load_run(here / "runs/moved")
    assert len(config.data.held_out()) > 0


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("qa.csv", "sft --data.source qa.csv --data.prompt COLUMN"),
        ("proteins.fasta", "sequences --data.source proteins.fasta"),
        ("texts", "text --data.source texts"),
    ],
)
def test_a_file_in_place_of_a_recipe_is_advised(command, here, name, advice):
    code, _, err = command("train", name, "--out", "x")
    assert code == 2
    assert f"unmask train {advice}" in err


def test_help_needs_no_data(command):
    code, out, _ = command("compare", "sft", "--help")
    assert code == 0
    assert "--data.prompt" in out

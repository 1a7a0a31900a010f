"""unmask evaluate: records of trained runs, and clear words for what cannot be measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unmask import LikelihoodConfig, RowStream, SudokuTask
from unmask.cli import main
from unmask.config import from_json
from unmask.data.sudoku import VOCAB_SIZE
from unmask.data.tokenizers import character_tokenizer
from unmask.evaluation.likelihood import likelihood
from unmask.evaluation.records import load_records
from unmask.recipes import SudokuData
from unmask.runs.config import load_model, load_run

SMALL = {
    "model.layers": 1,
    "model.width": 16,
    "model.heads": 2,
    "steps": 4,
    "batch-size": 8,
    "checkpoint-every": 2,
    "data.limit": 20,
    "evaluation.puzzles": 10,
    "evaluation.final-puzzles": 10,
    "tracker": "none",
    "threads": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for masking in ("standard", "puma"):
        options = [f"--{name}={value}" for name, value in SMALL.items()]
        main(["train", "sudoku", "--masking", masking, "--out", str(folder / masking), *options])
    return folder


def test_likelihoods_are_the_library_s_own(runs, command):
    code, out, _ = command("evaluate", str(runs / "standard"), "--rows", "6", "--samples", "3")
    assert code == 0
    assert "one protocol" in out
    records = {r.name: r for r in load_records(runs / "standard" / "evaluation" / "likelihood.json")}
    config, checkpoint = load_run(runs / "standard")
    dataset = config.data.held_out().select(range(6))
    expected = likelihood(load_model(checkpoint), dataset, LikelihoodConfig(samples=3)).nats_per_token
    found = records["negative ELBO, nats per token"]
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.n == 6
    assert from_json(found.protocol.settings) == LikelihoodConfig(samples=3)
    assert records["perplexity, upper bound"].value > 1


def test_several_runs_are_compared_on_the_same_rows_with_a_paired_difference(runs, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = command("evaluate", str(runs / "standard"), str(runs / "puma"), "--rows=8", "--samples=2")
    assert code == 0
    assert "one protocol" in out
    assert "less those of standard" in out
    a, b = (
        {r.name: r for r in load_records(runs / name / "evaluation" / "likelihood.json")}
        for name in ("standard", "puma")
    )
    name = "negative ELBO, nats per token"
    paired = b["nats per token less those of standard"]
    assert paired.value == pytest.approx(b[name].value - a[name].value)
    assert a[name].protocol.data == b[name].protocol.data
    assert a[name].protocol.checkpoint != b[name].protocol.checkpoint


def test_other_data_has_another_hash(runs, command):
    words = ("evaluate", str(runs / "standard"), "--rows=5", "--samples=2")
    hashes = []
    for more in ((), ("--split=train",), ("--data.clues", "29", "33"), ("--split=train",)):
        assert command(*words, *more)[0] == 0
        hashes.append(load_records(runs / "standard" / "evaluation" / "likelihood.json")[0].protocol.data)
    assert len(set(hashes)) == 3
    assert hashes[1] == hashes[3]


def test_tasks_are_the_run_s_own_evaluation(runs, command):
    code, _, _ = command("evaluate", str(runs / "standard"), "--what", "tasks")
    assert code == 0
    records = load_records(runs / "standard" / "evaluation" / "tasks.json")
    config, _ = load_run(runs / "standard")
    assert isinstance(config.evaluation, SudokuTask)
    assert records[0].name == "solved, all"
    assert records[0].n == 10
    assert sum(r.n for r in records[1:]) == 10
    assert from_json(records[0].protocol.settings) == config.evaluation


def test_locality_follows_the_checkpoints(runs, command):
    words = ("evaluate", str(runs / "standard"), "--what", "locality", "--rows=4", "--samples=2", "--reference=0")
    code, out, _ = command(*words)
    assert code == 0
    assert "loss, masked share" in out
    folder = runs / "standard" / "evaluation"
    records = load_records(folder / "locality.json")
    assert {r.model for r in records} == {"standard, step-00000002", "standard"}
    assert len({r.protocol.checkpoint for r in records}) == 2
    assert (folder / "locality.png").stat().st_size > 1000


def test_one_checkpoint_has_files_of_its_own(runs, command):
    first = runs / "standard" / "checkpoints" / "step-00000002"
    code, out, _ = command("evaluate", str(first), "--rows=3", "--samples=1")
    assert code == 0
    assert "standard, step-00000002" in out
    assert (runs / "standard" / "evaluation" / "likelihood-step-00000002.json").is_file()


def test_generation_comes_with_its_company(runs, command, tmp_path):
    """Sudokus read as text of a few letters: the machinery, not the verdict."""
    tokenizer = character_tokenizer(["abcdefgh"])
    assert tokenizer.vocab_size == VOCAB_SIZE
    tokenizer.save(tmp_path)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=90, n_embd=8, n_layer=1, n_head=2, bos_token_id=None
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    words = ["evaluate", str(runs / "standard"), "--what", "generation", "--texts=3", "--length=9"]
    words += ["--tokenizer", str(tmp_path), "--judge", str(tmp_path)]
    code, out, err = command(*words)
    assert code == 0, err
    for name in ("generative perplexity", "unigram entropy", "distinct 2-grams"):
        assert name in out
    whole = json.loads((runs / "standard" / "evaluation" / "generation-texts.json").read_text())
    assert len(whole["texts"]) == 3
    assert whole["figures"]["steps"] == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing"], "neither a run's folder nor a checkpoint"),
        (["{runs}/standard", "--what", "generation"], "needs --judge FOLDER"),
        (["{runs}/standard", "--samples", "0"], "samples must be an integer of at least 1"),
        (["{runs}/standard", "{runs}/standard"], "different names"),
        (["{runs}/standard", "--rows", "1"], "at least 2 rows"),
        (["{runs}/standard", "--what"], "names nothing to measure"),
        (["{runs}/standard", "--what", "likelihood", "generation", "--judge", "j"], "needs --tokenizer FOLDER"),
        (["{runs}/standard", "--what", "likelihood", "generation", "--judge", "j", "--texts=1"], "at least 2, got 1"),
        (["{runs}/standard", "--what", "likelihood", "locality", "--reference", "nan"], "finite number or a run"),
        (["{runs}/standard", "--what", "likelihood", "locality", "--reference", "no"], "neither a run's folder"),
        (
            ["{runs}/standard", "--what", "likelihood", "generation", "--judge=package:no", "--tokenizer={letters}"],
            "is not installed",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(runs, command, monkeypatch, tmp_path, words, said):
    """Before anything is measured."""
    monkeypatch.setattr("unmask.cli.evaluate.likelihood", lambda *_, **__: pytest.fail("measured"))
    character_tokenizer(["abcdefgh"]).save(tmp_path)
    code, _, err = command("evaluate", *(word.format(runs=runs, letters=tmp_path) for word in words))
    assert code == 2
    assert said in err
    assert "%" not in err, "the bar of something that is measured"


def test_a_run_without_a_task_is_named_before_anything_is_measured(runs, command, monkeypatch):
    monkeypatch.setattr("unmask.cli.evaluate.likelihood", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr("unmask.cli.evaluate.Task", str)
    code, _, err = command("evaluate", str(runs / "standard"), "--what", "likelihood", "tasks")
    assert code == 2
    assert "has no task" in err


def test_runs_of_a_study_are_told_apart_by_their_paths(runs, command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    cells = [tmp_path / "study" / arm / "seed-0" / "steps-4" for arm in ("standard", "puma")]
    for cell in cells:
        shutil.copytree(runs / cell.parent.parent.name, cell)
    code, out, err = command("evaluate", *map(str, cells), "--rows=4", "--samples=1")
    assert code == 0, err
    assert "puma/seed-0/steps-4" in out
    assert "less those of standard/seed-0/steps-4" in out
    assert "study" not in out.partition("Records and plots")[0]


def test_without_a_run_it_explains_itself(command):
    code, out, _ = command("evaluate")
    assert code == 2
    assert "usage: unmask evaluate RUN" in out
    code, out, _ = command("evaluate", "--help")
    assert code == 0
    assert "RUN is a run's folder" in out


def test_held_out_rows_are_not_trained_on():
    """What `--split held_out` measures lies outside what the run saw."""
    data = SudokuData()
    seen, kept = (RowStream(d).rows(torch.arange(len(d))).tokens for d in (data.load(), data.held_out()))
    assert not {tuple(r) for r in kept.tolist()} & {tuple(r) for r in seen.tolist()}

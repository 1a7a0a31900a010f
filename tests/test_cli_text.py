"""The command line on text: the commands that were made for puzzles do what they say for likelihoods too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.evaluation.records import load_records

SMALL = {
    "model.layers": 1,
    "model.width": 16,
    "model.heads": 2,
    "model.positions": 32,
    "data.length": 32,
    "data.held-out-rows": 16,
    "steps": 4,
    "batch-size": 8,
    "evaluate-every": 2,
    "tracker": "none",
    "threads": 1,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Options of a tiny run on a few texts."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"the {chr(97 + i % 26) * 3} cat sat on mat {i} " * 20)
    return [f"--{name}={value}" for name, value in SMALL.items()] + ["--data.source", str(folder)]


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    main(["train", "sotu", "--masking", "bell", *small, "--out", str(out)])
    return out


def test_help_names_the_arms(command):
    code, out, _ = command("train", "sotu", "--help")
    assert code == 0
    for name in ("ppots-mirror", "--data.vocabulary", "--model.init-std", "--evaluation.samples"):
        assert name in out


def test_evaluate_gives_bits_per_character_with_the_data_s_own_tokenizer(command, trained):
    code, out, err = command("evaluate", str(trained), "--rows=6", "--samples=2")
    assert code == 0, err
    records = {r.name: r for r in load_records(trained / "evaluation" / "likelihood.json")}
    bits, letters = records["negative ELBO, bits per token"], records["negative ELBO, bits per character"]
    assert letters.value == pytest.approx(bits.value)  # a token is a letter
    assert letters.protocol.tokenizer is not None
    assert "bits per character" in out


def test_sample_writes_texts(command, trained):
    words = ["sample", str(trained), "--length=20", "--texts=3"]
    code, out, err = command(*words)
    assert code == 0, err
    assert "60 tokens in 20 steps" in out
    assert out.split(" tokens in ")[0] == command(*words)[1].split(" tokens in ")[0]
    assert out != command(*words, "--number=1")[1]
    code, _, err = command("sample", str(trained), "--length=33")
    assert code == 2
    assert "the model reads 32 tokens" in err


@pytest.mark.slow
def test_compare_shows_likelihoods_and_keeps_each_arm_s_objective(command, small, tmp_path):
    words = ["compare", "sotu", "--arms", "standard", "bell", *small, "--out", str(tmp_path)]
    code, out, err = command(*words)
    assert code == 0, err
    assert "held-out negative ELBO, nats per token at the end" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    runs = [json.loads((tmp_path / name / "config.json").read_text())["run"] for name in ("standard", "bell")]
    assert [run["objective"]["type"] for run in runs] == ["ELBO", "MaskedMean"]
    assert {name for name in runs[0] if runs[0][name] != runs[1][name]} == {"masking", "objective"}

"""The command line on text: the commands that were made for puzzles do what they say for likelihoods too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from unmask.cli import main
from unmask.data.tokenizers import EOS_TOKEN, UNKNOWN_TOKEN
from unmask.evaluation.records import load_records
from unmask.recipes import TextData
from unmask.runs.config import load_run

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


def texts(folder: Path) -> Path:
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"the {chr(97 + i % 26) * 3} cat sat on mat {i} " * 20)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Options of a tiny run on a few texts."""
    folder = texts(tmp_path_factory.mktemp("texts"))
    return [f"--{name}={value}" for name, value in SMALL.items()] + ["--data.source", str(folder)]


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    main(["train", "sotu", "--masking", "bell", *small, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def shifted(tmp_path_factory) -> tuple[Path, Path]:
    """A run by characters, shifted, and the folder of its texts."""
    folder, out = texts(tmp_path_factory.mktemp("characters")), tmp_path_factory.mktemp("cli") / "shifted"
    size = TextData(str(folder), vocabulary="characters").tokenizer().vocab_size
    words = [f"--{name}={value}" for name, value in SMALL.items()] + ["--data.source", str(folder)]
    words += ["--data.vocabulary=characters", f"--model.vocab-size={size}", "--model.shifted", "--data.first-given"]
    main(["train", "sotu", "--masking", "bell", *words, "--out", str(out)])
    return out, folder


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


def test_sample_goes_on_from_a_prompt(capsys, trained, shifted):
    for run, prompt in ((trained, "The CAT"), (shifted[0], "the cat")):
        main(["sample", str(run), "--length=24", "--texts=4", "--prompt", prompt])
        *written, last = [line for line in capsys.readouterr().out.split("\n") if line]
        assert len(written) == 4
        assert all(text.startswith("the cat") for text in written)
        assert len(set(written)) == 4
        assert last.startswith("68 tokens in 17 steps")  # 4 times 24 less the prompt's 7


def test_sample_stops_at_the_end_of_text(capsys, shifted):
    """The little that this run has learnt makes it write the end of a text now and then."""
    main(["sample", str(shifted[0]), "--length=24", "--texts=20"])
    written = capsys.readouterr().out
    assert EOS_TOKEN not in written
    lengths = [len(text.replace(UNKNOWN_TOKEN, "?")) for text in written.split("\n\n")[:-1]]
    assert min(lengths) < 24
    assert max(lengths) <= 24
    assert f"\n{sum(lengths)} tokens in 24 steps" in written  # what lies behind an end is not made


def test_sample_writes_as_much_as_the_model_reads_unless_told(command, trained, shifted):
    assert "32 tokens in 32 steps" in command("sample", str(trained), "--texts=1")[1]
    assert "31 tokens in 31 steps" in command("sample", str(shifted[0]), "--texts=1")[1]


def test_sample_runs_where_it_is_told(command, trained):
    words = ["sample", str(trained), "--length=9"]
    code, out, err = command(*words, "--device=cpu")
    assert code == 0, err
    if not torch.cuda.is_available():
        assert out.split(" tokens")[0] == command(*words)[1].split(" tokens")[0]
        code, _, err = command(*words, "--device=cuda")
        assert code == 2
        assert "--device cuda cannot be used" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length=33"], "the model reads 32 tokens"),
        (["--prompt", "the cat sat", "--length=11"], "the prompt has 11 tokens, a text 11"),
        (["--prompt", "123 !"], "the run's vocabulary lacks '1' '2' '3' '!'"),
        (["--device=gpu"], "--device gpu cannot be used"),
        (["--texts=0"], "texts must be an integer of at least 1"),
    ],
)
def test_sample_explains_mistakes(command, trained, words, message):
    code, out, err = command("sample", str(trained), *words)
    assert (code, out) == (2, "")
    assert message in err


def test_run_s_tokenizer_reads_other_texts(command, shifted, tmp_path):
    """Evaluated on texts that would have given another tokenizer; resumed, the run refuses them."""
    run, folder = shifted
    other = tmp_path / "other.txt"
    other.write_text("ÄÖÜ the cat " * 40)
    code, _, err = command("evaluate", str(run), "--rows=4", "--samples=1", "--data.held-out-source", str(other))
    assert code == 0, err
    ours = load_run(run)[0].data.tokenizer()
    assert load_records(run / "evaluation" / "likelihood.json")[0].protocol.tokenizer == ours.fingerprint
    for i in range(20):  # some of them are trained on
        (folder / f"new{i}.txt").write_text(f"ÄÖÜ {i} " * 99)
    assert TextData(str(folder), vocabulary="characters").tokenizer().fingerprint != ours.fingerprint
    assert command("sample", str(run), "--texts=1")[0] == 0
    code, _, err = command("train", str(run / "config.json"), "--out", str(run), "--resume")
    for file in folder.glob("new*.txt"):
        file.unlink()
    assert code == 2
    assert f"{run} was trained with another tokenizer" in err
    assert command("train", str(run / "config.json"), "--out", str(run), "--resume")[0] == 0


def test_runs_with_different_tokenizers_are_not_put_side_by_side(command, trained, shifted):
    code, _, err = command("evaluate", str(trained), str(shifted[0]), "--rows=4", "--samples=1")
    assert code == 2
    assert "run, shifted have different tokenizers" in err


def test_one_file_needs_others_to_hold_out(command, small, tmp_path):
    for name in ("book", "other"):
        (tmp_path / f"{name}.txt").write_text(f"a {name} is one document " * 99)
    words = ["train", "sotu", *small[:-1], str(tmp_path / "book.txt"), "--out", str(tmp_path / "run")]
    code, _, err = command(*words)
    assert code == 2
    assert re.search(r"no document of .*book.txt is held out.*--data.held-out-source", err)
    assert not (tmp_path / "run").exists()
    code, _, err = command(*words, "--data.held-out-source", str(tmp_path / "other.txt"))
    assert code == 0, err


@pytest.mark.slow
def test_compare_shows_likelihoods_and_keeps_each_arm_s_objective(command, small, tmp_path):
    words = ["compare", "sotu", "--arms", "standard", "bell", *small, "--seeds=1", "--out", str(tmp_path)]
    code, out, err = command(*words)
    assert code == 0, err
    assert "Negative ELBO, nats per token at the end, 4 steps" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    folders = [next(tmp_path.glob(f"{name}/seed-*/steps-*/config.json")) for name in ("standard", "bell")]
    runs = [json.loads(config.read_text())["run"] for config in folders]
    assert [run["objective"]["type"] for run in runs] == ["ELBO", "MaskedMean"]
    assert {name for name in runs[0] if runs[0][name] != runs[1][name]} == {"masking", "objective"}


def test_a_question_is_put_as_the_run_has_learnt_it(command, tmp_path):
    lines = "".join(f"{i % 9} plus {i},{i % 9 + i}\n" for i in range(120))
    (tmp_path / "qa.csv").write_text(f"question,answer\n{lines}")
    columns = [
        "--data.source",
        str(tmp_path / "qa.csv"),
        "--data.prompt",
        "Q: {question} =",
        "--data.response",
        "answer",
    ]
    small = ["--steps", "1", "--model.layers", "1", "--model.width", "16", "--model.heads", "2"]
    assert command("train", "sft", *columns, *small, "--out", str(tmp_path / "run"))[0] == 0
    words = ["sample", str(tmp_path / "run"), "--texts=1", "--length=20", "--prompt"]
    for typed, shown in (
        (["2 plus 3"], "Q: 2 plus 3 ="),
        (["Q: 2 plus 3 ="], "Q: 2 plus 3 ="),
        (["2 plus", "--as-is"], "2 plus"),
    ):
        code, out, err = command(*words, *typed)
        assert code == 0, err
        assert out.startswith(shown)

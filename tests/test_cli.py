"""The command line: what is typed works, and what is mistyped gets one clear message and exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from unmask.cli import main
from unmask.cli.options import masked_as
from unmask.config import to_json
from unmask.recipes import RunConfig, sudoku
from unmask.training import read_metrics

SMALL = {
    "model.layers": 1,
    "model.width": 16,
    "model.heads": 2,
    "steps": 3,
    "batch-size": 8,
    "data.limit": 20,
    "evaluation.puzzles": 10,
    "evaluation.final-puzzles": 10,
    "tracker": "none",
    "threads": 1,
}
TINY = [f"--{name}={value}" for name, value in SMALL.items()]


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


MISTAKES = {
    "command": (["trian", "sudoku"], "unknown command 'trian'; did you mean 'train'?"),
    "recipe as command": (["sft", "--help"], "unknown command 'sft': it is a recipe, as in `unmask train sft`"),
    "recipe": (["train", "sudokku"], "unknown recipe 'sudokku'; did you mean 'sudoku'?"),
    "recipe of compare": (["compare", "sudokku"], "unknown recipe 'sudokku'; did you mean 'sudoku'?"),
    "masking": (["train", "sudoku", "--masking", "pume"], "unknown masking 'pume'; did you mean 'puma'?"),
    "masking with =": (["train", "sudoku", "--masking=pume"], "unknown masking 'pume'; did you mean 'puma'?"),
    "no masking": (["train", "sudoku", "--masking"], "--masking needs a value"),
    "two maskings": (["train", "sudoku", "--masking", "puma", "standard"], "--masking takes one value"),
    "field": (["train", "sudoku", "--stepz", "3"], "Unrecognized options: --stepz, 3 .*--steps INT"),
    "warm-up of budgets": (
        ["compare", "sudoku", "--steps", "50", "--budgets", "50", "90"],
        r"--steps 50 has, and --warmup-steps 80 is more than all of it: lower it",
    ),
    "evaluations of budgets": (
        ["compare", "sudoku", "--steps", "100", "--evaluate-every", "200", "--budgets", "50"],
        r"--steps 100 has, and --evaluate-every 200 is more than all of it: lower it",
    ),
    "nested field": (["train", "sudoku", "--model.layer", "3"], "Unrecognized options: .*--model.layers INT"),
    "field of the other": (["train", "sudoku", "--masking.stages", "3"], "Unrecognized options: --masking.stages"),
    "policy": (
        ["train", "sudoku", "--evaluation.decoding.policy", "margn"],
        "unknown policy 'margn'; did you mean 'margin'?",
    ),
    "time": (["train", "sudoku", "--masking.time", "Betta()"], "unknown TimeDistribution 'Betta'; .* 'Beta'?"),
    "rule": (
        ["train", "sudoku", "--masking.mask", "Bernuli"],
        "unknown MaskRule 'Bernuli'; did you mean 'Bernoulli'",
    ),
    "objective": (["train", "sudoku", "--objective", "RowMeen()"], "unknown Objective 'RowMeen'; .* 'RowMean'?"),
    "code": (["train", "sudoku", "--objective", "__import__('os')"], "unknown Objective '__import__'"),
    "negative size": (["train", "sudoku", "--steps", "-3"], "steps must be an integer of at least 1, got -3"),
    "no end": (["train", "sudoku", "--learning-rate", "inf"], "learning_rate must be a finite number, got inf"),
    "zero size": (["train", "sudoku", "--batch-size", "0"], "batch_size must be an integer of at least 1, got 0"),
    "broken size": (["train", "sudoku", "--steps", "1.5"], "--steps: invalid literal for int"),
    "word as size": (["train", "sudoku", "--model.layers", "two"], "--model.layers: invalid literal for int"),
    "nested size": (["train", "sudoku", "--model.width", "-8"], "width must be an integer of at least 1, got -8"),
    "width and heads": (["train", "sudoku", "--model.heads", "3"], "width 128 is not a multiple of heads 3"),
    "no rows": (["train", "sudoku", "--data.limit", "0"], "limit must be an integer of at least 1, got 0"),
    "stages": (
        ["train", "sudoku", "--masking", "puma", "--masking.stages", "0"],
        "stages must be a positive integer",
    ),
    "choice": (
        ["train", "sudoku", "--schedule", "quadratic"],
        "invalid choice 'quadratic' for argument '--schedule'",
    ),
    "ELBO and PUMA": (["train", "sudoku", "--masking", "puma", "--objective", "ELBO()"], "ELBO cannot use Progres"),
    "tracker": (
        ["train", "sudoku", "--data.limit", "9", "--tracker", "tensorbord"],
        "tracker 'tensorbord': .*tensorb",
    ),
    "one arm": (["compare", "sudoku", "--arms", "puma"], "--arms needs at least two different names, got puma"),
    "same arms": (["compare", "sudoku", "--arms", "puma", "puma"], "needs at least two different names"),
    "arm": (["compare", "sudoku", "--arms", "standard", "pume"], "unknown masking 'pume'; did you mean 'puma'?"),
    "arm without a name": (["compare", "sudoku", "--arms", "standard", "Blockwise()"], "give the arm .* a name"),
    "arm of another kind": (
        ["compare", "sudoku", "--arms", "standard", "x=Blokwise(3)"],
        "unknown masking 'Blokwise'; did you mean 'Blockwise'",
    ),
    "printed masking": (["train", "sudoku", "--masking", "Blockwise("], "cannot read 'Blockwise\\('"),
    "masking of masks": (["train", "sudoku", "--masking", "Bernoulli()"], "unknown masking 'Bernoulli'"),
    "no seeds": (["compare", "sudoku", "--seeds", "0"], "seeds must be an integer of at least 1, got 0"),
    "no data": (["train", "sft"], r"--data.source FILE \(unmask train sft --help explains\)"),
    "no data of compare": (["compare", "text"], r"--data.source FILE \(unmask compare text --help explains\)"),
    "no rows of a recipe": (["variance", "sft"], "sft has no data of its own: unmask train sft --data.source FILE"),
    "no sequences": (["variance", "sequences"], "unmask train sequences --data.source FILE --out DIR, then unmask v"),
    "arms' own field": (
        ["compare", "sudoku", "--masking.mask", "Bernoulli()"],
        "Unrecognized options: --masking.mask",
    ),
}


@pytest.mark.parametrize(
    "words", [["train", "sudoku"], ["compare", "sudoku"], ["advise", "sudoku"], ["variance", "sudoku"]]
)
@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_file_in_place_of_out_is_named_before_anything_is_done(command, tmp_path, words, below):
    (tmp_path / "qa.csv").write_text("a,b\n")
    code, _, err = command(*words, "--out", str(tmp_path / "qa.csv" / below))
    assert code == 2
    assert err == f"unmask: {tmp_path / 'qa.csv'} is a file, and --out names a folder: choose another"


def test_random_weights_that_are_measured_are_those_of_the_seed(command, tmp_path, monkeypatch):
    measured = []

    def remembered(model, *rest):
        measured.append(next(model.parameters()).detach().clone())
        raise ValueError("enough")

    monkeypatch.setattr("unmask.cli.variance.compare_variance", remembered)
    for seed in ("1", "1", "2"):
        command("variance", "sudoku", "--arms", "standard", "--seed", seed, "--out", str(tmp_path))
    assert torch.equal(measured[0], measured[1])
    assert not torch.equal(measured[0], measured[2])


def test_an_option_of_other_recipes_is_not_dropped(command, tmp_path):
    """`--pretrained` is read by some recipes beside their data; those that cannot start from a model say so."""
    file = tmp_path / "my proteins.fasta"
    file.write_text("".join(f">{i}\n{'ACDEFGHIKL'[i % 10 :]}MN{'PQ' * i}\n" for i in range(60)))
    words = ["train", "sequences", "--data.source", str(file), "--pretrained", "nowhere", "--steps", "1"]
    code, _, err = command(*words, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "--pretrained" in err
    assert not (tmp_path / "run").exists()
    assert f"sequences --data.source '{file}' --out" in command("train", str(file))[2]  # as a shell takes it


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained_before_anything_is_made(command, tmp_path, words, message):
    code, _, err = command(*words, "--out", str(tmp_path / "run"))
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


GOOD = to_json(sudoku("puma"))
CONFIGS = {
    "no JSON": ("nope", "cannot read a config from"),
    "other JSON": ("[1]", "holds no config of a run"),
    "no fields": ('{"type": "RunConfig"}', "the saved RunConfig does not fit this version"),
    "a number": ('{"run": 3}', "holds no config of a run"),
    "no training": (json.dumps(GOOD | {"training": None}), "training must be a TrainingConfig, got None"),
    "other data": (
        json.dumps(GOOD | {"data": 5, "model": {"type": "Uniform"}}),
        "data must be a DataConfig .*, got 5",
    ),
    "other field": (json.dumps(GOOD | {"masking": GOOD["masking"] | {"stagez": 3}}), "unexpected .* 'stagez'"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS)
def test_bad_config_file_is_explained_before_anything_is_made(command, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    code, _, err = command("train", str(tmp_path / "config.json"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert re.search(message, err), err
    assert str(tmp_path / "config.json") in err or "the saved" in err
    assert not (tmp_path / "run").exists()


def test_config_file_trains_the_run_that_it_came_from(command, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    assert command("train", "sudoku", "--masking", "puma", *TINY, "--out", str(first))[0] == 0
    assert command("train", str(first / "config.json"), "--out", str(again))[0] == 0
    assert _config(first) == _config(again)
    weights = [folder / "checkpoints" / "step-00000003" / "model" / "model.safetensors" for folder in (first, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    renamed = GOOD | {"recipe": "my own"}
    (tmp_path / "own.json").write_text(json.dumps(renamed))
    assert command("train", str(tmp_path / "own.json"), *TINY, "--out", str(tmp_path / "own"))[0] == 0


def test_own_messages_are_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["train", "sudoku", "--masking", "pume", "--out", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1


def test_warnings_are_lines_without_their_source(capsys, monkeypatch):
    """Whoever raises them; from Python they stay warnings."""
    text = "rows [bold]were[/]\n cut: --data.length"

    def warned(words):
        for _ in range(2):
            warnings.warn(text, stacklevel=2)
        warnings.warn("late", UserWarning, stacklevel=2)

    monkeypatch.setattr("unmask.cli.train.train", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["train"])
        assert capsys.readouterr().err.splitlines() == [
            "warning: rows [bold]were[/] cut: --data.length",
            "warning: late",
        ]
    with pytest.warns(UserWarning, match="were"):
        warned([])


def test_messages_keep_brackets_in_names(command, tmp_path):
    folder = tmp_path / "in [red] [dim]"
    folder.mkdir()
    (folder / "file").touch()
    code, _, err = command("train", "sudoku", "--data.limit=9", "--tracker=none", "--out", str(folder))
    assert code == 2
    assert str(folder) in err
    code, _, err = command("train", "sudoku", "--masking", "[/red]", "--out", str(folder))
    assert code == 2
    assert "unknown masking '[/red]'" in err


def test_out_is_required(command):
    code, _, err = command("train", "sudoku")
    assert code == 2
    assert "--out PATH" in err


@pytest.mark.parametrize("masking", ["standard", "puma"])
def test_train_then_refuse_then_resume_then_overwrite(command, tmp_path, masking):
    out = tmp_path / "run"
    words = ["train", "sudoku", "--masking", masking, *TINY, "--out", str(out)]
    code, said, _ = command(*words)
    assert code == 0
    assert said == f"trained: {out / 'checkpoints' / 'step-00000003'}"
    assert [line["step"] for line in read_metrics(out, "evaluation")] == [0, 3]

    code, _, err = command(*words)
    assert code == 2
    assert f"{out} already holds a run" in err

    code, _, err = command(*words, "--resume", "--steps=4", "--model.width=18")
    assert code == 2
    assert "model.width: 16 -> 18" in err

    assert command(*words, "--resume")[0] == 0
    assert command(*words, "--overwrite", "--steps=2")[0] == 0
    assert [line["step"] for line in read_metrics(out, "evaluation")] == [0, 2]


def test_nested_fields_can_be_overridden(command, tmp_path):
    puma = ["--masking", "puma", "--masking.stages", "4", "--masking.threshold", "None", "--masking.policy", "margin"]
    puma += ["--masking.time=Clipped(0.75, 1.0)", "--masking.pool", "batch"]
    assert command("train", "sudoku", *puma, *TINY, "--out", str(tmp_path / "puma"))[0] == 0
    assert _config(tmp_path / "puma")["run"]["masking"] == {
        "type": "ProgressiveUnmasking",
        "stages": 4,
        "policy": "margin",
        "threshold": None,
        "time": {"type": "Clipped", "low": 0.75, "high": 1.0},
        "pool": "batch",
    }
    assert command("train", "sudoku", *puma, *TINY, "--masking.pool=8", "--out", str(tmp_path / "pool"))[0] == 0
    assert _config(tmp_path / "pool")["run"]["masking"]["pool"] == 8
    standard = ["--masking", "standard", "--masking.time", "Beta(a=2, b=1)", "--masking.mask", "Bernoulli()"]
    standard += ["--objective", "MaskedMean()", "--ema-decay", "0.9", "--data.clues", "30", "32", "--precision=fp32"]
    assert command("train", "sudoku", *standard, *TINY, "--out", str(tmp_path / "standard"))[0] == 0
    saved = _config(tmp_path / "standard")
    assert saved["run"]["masking"]["time"] == {"type": "Beta", "a": 2, "b": 1}
    assert saved["run"]["masking"]["mask"] == {"type": "Bernoulli"}
    assert saved["run"]["objective"] == {"type": "MaskedMean"}
    assert saved["run"]["data"]["clues"] == [30, 32]
    assert (saved["training"]["ema_decay"], saved["training"]["precision"]) == (0.9, "fp32")


@pytest.mark.slow
def test_compare_trains_arms_alike_and_keeps_tables_and_figure(command, tmp_path):
    arms = ["standard", "blocks=Blockwise(IndependentMasking(mask=ExactCount()), size=9)"]
    words = ["compare", "sudoku", "--arms", *arms, *TINY, "--seeds=1", "--evaluate-every=1", "--out", str(tmp_path)]
    code, out, _ = command(*words)
    assert code == 0
    assert "Solved at the end, 3 steps" in out
    assert "an indication, not a proof" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "summary.md").read_text().startswith("# sudoku\n")
    folders = [tmp_path / name / "seed-0" / "steps-3" for name in ("standard", "blocks")]
    standard, blocks = map(_config, folders)
    assert standard["training"] == blocks["training"]
    differing = {name for name in standard["run"] if standard["run"][name] != blocks["run"][name]}
    assert differing == {"masking", "objective"}  # each with its own
    assert blocks["run"]["masking"]["size"] == 9
    loss = [read_metrics(folder, "evaluation")[0]["loss"] for folder in folders]
    assert loss[0] == loss[1], "the arms must start from one model under one validation noise"

    before = [(folder / "metrics.jsonl").stat().st_mtime_ns for folder in folders]
    assert command(*words)[0] == 0  # nothing is left to do
    assert [(folder / "metrics.jsonl").stat().st_mtime_ns for folder in folders] == before
    code, _, err = command(*words, "--batch-size=4")
    assert code == 2
    assert "batch_size: 8 -> 4" in err
    assert command(*words, "--batch-size=4", "--overwrite")[0] == 0
    assert _config(folders[0])["training"]["batch_size"] == 4


def test_compare_refuses_the_second_folder_before_the_first_arm_trains(command, tmp_path):
    other = tmp_path / "puma" / "seed-0" / "steps-3"
    other.mkdir(parents=True)
    (other / "file").touch()
    for words in ([], ["--overwrite"]):
        code, _, err = command("compare", "sudoku", *TINY, *words, "--out", str(tmp_path))
        assert code == 2
        assert str(other) in err
        assert not (tmp_path / "standard").exists()


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--devices", "99"]], ids=" ".join)
def test_what_cannot_be_done_costs_no_run_that_is_to_be_overwritten(command, tmp_path, words):
    there = tmp_path / "puma" / "seed-0" / "steps-3" / "config.json"
    there.parent.mkdir(parents=True)
    there.write_text(json.dumps({"unmask": "0.1.0", "run": {}, "training": {}}))
    (tmp_path / "records.jsonl").touch()
    code, _, err = command("compare", "sudoku", *TINY, *words, "--overwrite", "--out", str(tmp_path))
    assert code == 2
    assert words[0].strip("-") in err
    assert there.is_file()
    assert (tmp_path / "records.jsonl").is_file()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Blockwise(IndependentMasking(), size=4)", {"type": "Blockwise", "size": 4}),
        ("ProgressiveUnmasking(stages=3), MaskedMean()", {"type": "ProgressiveUnmasking", "stages": 3}),
    ],
)
def test_any_masking_is_typed_as_it_prints(command, tmp_path, text, kept):
    assert command("train", "sudoku", "--masking", text, *TINY, "--steps=1", "--out", str(tmp_path / "run"))[0] == 0
    run = _config(tmp_path / "run")["run"]
    assert run["masking"].items() >= kept.items()
    assert run["objective"]["type"] == ("MaskedMean" if "MaskedMean" in text else "RowMean")
    printed = repr(RunConfig.load(tmp_path / "run" / "config.json").masking)
    assert masked_as(sudoku, printed).masking == masked_as(sudoku, text).masking


def test_command_ends_a_process_with_code_2_and_no_traceback(tmp_path):
    """The installed command, as a shell runs it."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("unmask"), "train", "sudoku", "--out", tmp_path, "--masking", "pume"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("unmask: unknown masking 'pume'; did you mean 'puma'? Known: standard, ")
    assert ended.stderr.count("\n") == 1


def test_errors_of_the_system_come_without_their_number(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("unmask.cli.train.train", lambda words: (tmp_path / "file" / "run").read_text())
    code, _, err = command("train")
    assert (code, err) == (2, f"unmask: {tmp_path / 'file' / 'run'}: not a directory")


def test_the_first_line_tells_where_all_rows_went(command, tmp_path):
    lines = "".join(f"{i % 9} plus {i},{i % 9 + i}\n" for i in range(120))
    (tmp_path / "qa.csv").write_text(f"question,answer\n{lines}")
    columns = ["--data.source", str(tmp_path / "qa.csv"), "--data.prompt", "question", "--data.response", "answer"]
    small = ["--steps", "1", "--model.layers", "1", "--model.width", "16", "--model.heads", "2"]
    code, _, err = command("train", "sft", *columns, *small, "--out", str(tmp_path / "run"))
    counts = re.search(r"Data: (\d+) rows .*to train, (\d+) held out, (\d+) left for tests", err)
    assert code == 0, err
    assert counts is not None, err
    assert sum(map(int, counts.groups())) == 120

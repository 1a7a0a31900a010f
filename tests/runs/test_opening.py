"""Whatever trains can be opened: runs of Python code, of a user's own classes, started in another folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from unmask import ExactCount, IndependentMasking, Trainer, TrainingConfig, Uniform
from unmask.cli import main
from unmask.config import _OURS, from_json, to_json
from unmask.evaluation.decomposition import load_variance
from unmask.evaluation.records import load_records
from unmask.parts import HeldOutLikelihood, RowsOnDisk, SavedModel, TextData, TextModel
from unmask.recipes import sotu
from unmask.runs.config import RunConfig, load_model, load_run
from unmask.runs.job import Job

TRAINING = TrainingConfig(steps=2, batch_size=4, warmup_steps=1, threads=1, precision="fp32", tracker="none")

# A user's script: own rows, own network, own policy; and a trap that shows when it is imported.
OWN = """
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
import torch
from datasets import Dataset
from unmask import MaskedDiffusionLM, ProgressiveUnmasking, RowMean, TrainingConfig
from unmask.parts import HeldOutLikelihood
from unmask.runs.config import RunConfig

Path("imported").touch()

@dataclass(frozen=True)
class Rows:
    count: int = 12

    def load(self):
        tokens = [[(i + 3 * j) % 7 for j in range(6)] for i in range(self.count)]
        return Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 6] * self.count})

    held_out = load

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = torch.nn.Embedding(8, 16), torch.nn.Linear(16, 16)

    def forward(self, input_ids, attention_mask=None):
        seen = self.embed(input_ids)
        return SimpleNamespace(last_hidden_state=self.mix(seen + seen.mean(1, keepdim=True)))

@dataclass(frozen=True)
class Own:
    def build(self):
        return MaskedDiffusionLM(Network(), torch.nn.Linear(16, 8), 7)

def last_first(scores, noise):
    return torch.arange(noise.shape[1]).expand_as(noise).double()

class Dangerous:
    def __init__(self, **fields):
        Path("built").touch()

def call(**fields):
    Path("called").touch()

if __name__ == "__main__":
    training = TrainingConfig(steps=2, batch_size=4, warmup_steps=1, threads=1, precision="fp32", tracker="none")
    masking = ProgressiveUnmasking(stages=2, policy=last_first)
    RunConfig("own", Rows(), Own(), masking, RowMean(), training, HeldOutLikelihood()).train("run")
"""


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> Path:
    """The folder in which a user's script has trained."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(OWN)

    def trained() -> None:
        os.chdir(folder)
        runpy.run_path("mine.py", run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=trained)  # which has imported all but the script
    process.start()
    process.join(120)
    assert process.exitcode == 0
    (folder / "imported").unlink()
    return folder


def test_run_of_own_classes_is_refused_unless_their_module_is_named(own_run, command, monkeypatch):
    monkeypatch.chdir(own_run)
    code, _, said = command("evaluate", "run")
    assert code == 2
    assert "mine:Rows, which is not of unmask" in said
    assert "--module mine" in said
    assert not (own_run / "imported").exists()


@pytest.mark.parametrize("module", ["mine", "mine.py"])
def test_run_of_own_classes_is_evaluated_once_their_module_is_named(own_run, command, monkeypatch, module):
    monkeypatch.chdir(own_run)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    code, said, _ = command("evaluate", "run", "--module", module, "--device", "cpu", "--samples", "1")
    assert code == 0
    assert "negative ELBO" in said


def test_run_of_own_classes_opens_from_python(own_run, monkeypatch):
    monkeypatch.chdir(own_run)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    config, last = load_run("run", modules=["mine"])
    mine = sys.modules["mine"]
    assert config.data == mine.Rows()
    assert config.masking.policy is mine.last_first
    model = load_model(last, modules=[mine])
    assert isinstance(model.backbone, mine.Network)
    assert load_run("run", modules=[mine])[0] == config


def test_job_of_own_classes_is_read_with_the_modules_that_its_parent_names(own_run, monkeypatch, tmp_path):
    monkeypatch.chdir(own_run)
    config, _ = load_run("run", modules=["mine"])
    job = Job("one", config, tmp_path / "out", {"again": config.evaluation}, command="unmask study it.py")
    job.save(tmp_path / "job.json")
    assert job.modules == ["mine"]
    assert Job.load(tmp_path / "job.json", job.modules) == job
    with pytest.raises(ValueError, match="mine:Rows, which is not of unmask"):
        Job.load(tmp_path / "job.json")


@pytest.mark.parametrize(
    "name", ["mine:Dangerous", "mine:call", "mine:Path", "mine:torch.nn.Linear", "os:system", "mine:missing", "mine:"]
)
def test_hostile_json_builds_nothing_else(own_run, monkeypatch, name):
    monkeypatch.chdir(own_run)
    config = json.loads((own_run / "run" / "config.json").read_text())
    config["run"]["data"] = {"type": name, "x": 1}
    (own_run / "hostile.json").write_text(json.dumps(config))
    for modules in ((), ["mine"]):
        with pytest.raises(ValueError, match=r"not of unmask|no such dataclass"):
            RunConfig.load(own_run / "hostile.json", modules)
    assert not (own_run / "built").exists()
    assert not (own_run / "called").exists()


def test_what_a_file_may_name_touches_nothing_while_it_is_built():
    """No file, process, network or module: a config is data until somebody trains or loads with it."""
    kinds = {name: kind for name, kind in _OURS.items() if isinstance(kind, type) and is_dataclass(kind)}
    assert {"RunConfig", "PretrainedModel", "RowsOnDisk", "AnswerTask"} <= kinds.keys()

    def build() -> None:
        def refuse(event: str, details: tuple) -> None:
            if event == "open" or event.split(".")[0] in ("import", "subprocess", "os", "socket", "shutil"):
                raise RuntimeError(f"{event} {details}")

        sys.addaudithook(refuse)  # nobody can take it away again: in a process of its own
        for name, kind in kinds.items():
            needed = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
            with suppress(ValueError):
                from_json({"type": name, **dict.fromkeys(needed, "hub:x")})
        with pytest.raises(RuntimeError, match="open"):
            Path("anything").read_text()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=build)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_module_that_is_not_there_is_named(own_run, monkeypatch):
    monkeypatch.chdir(own_run)
    with pytest.raises(ValueError, match="cannot import the module elsewhere"):
        load_run("run", modules=["elsewhere"])


def test_strings_that_look_like_names_stay_strings():
    saved = to_json(TextData(source="a:b", vocabulary="sys:path"))
    assert from_json(saved) == TextData(source="a:b", vocabulary="sys:path")


@pytest.fixture
def python_run(tmp_path, short_rows) -> Path:
    """A run of the README's kind: a model and rows handed to the trainer."""
    model = TextModel(vocab_size=9, layers=1, width=16, heads=2, positions=6).build()
    Trainer(model, IndependentMasking(mask=ExactCount()), short_rows, config=TRAINING, out=tmp_path / "run").train()
    return tmp_path / "run"


def test_run_trained_from_python_opens_and_says_what_it_does_not_know(python_run, command):
    config, last = load_run(python_run)
    assert (config.data, config.model) == (RowsOnDisk(), SavedModel())
    assert config.masking == IndependentMasking(mask=ExactCount())
    assert load_model(last).mask_token_id == 8
    assert "--data.held-out-source" in command("evaluate", str(python_run))[2]
    assert "--rows" in command("variance", str(python_run))[2]


def test_variance_measures_maskings_as_they_print(python_run, short_rows, tmp_path, command):
    """Those that estimate something else than the ELBO too: their variance is held against their own mean."""
    short_rows.to_parquet(tmp_path / "rows.parquet")
    draws = ["--nested.row-sets", "3", "--nested.rates", "2", "--batch-size", "4"]
    words = ["variance", str(python_run), "--rows", str(tmp_path / "rows.parquet"), *draws, "--arms", "standard"]
    typed = "isad=IndependentMasking(mask=Delimiters((3,))), InverseRate()"
    code, out, err = command(*words, typed, "papl", "even=IndependentMasking(coupling='stratified')")
    assert code == 0, err
    assert "squared" in out
    found = load_variance(python_run / "variance" / "variance.json")
    assert list(found) == ["standard", "isad", "papl", "even"]
    assert found["even"]["loss"].over_signal == found["even"]["loss"].parts / found["even"]["loss"].signal
    assert "IndependentMasking" in command(*words, "mine=ProgressiveUnmasking(stages=2)")[2]
    assert "different names" in command(*words, "standard")[2]
    assert "unknown arm" in command(*words, "mine=pappl")[2]


@pytest.mark.parametrize("form", ["folder", "parquet", "jsonl"])
def test_run_trained_from_python_is_evaluated_on_rows_that_are_named(python_run, short_rows, tmp_path, form):
    place = tmp_path / f"rows.{form}"
    if form == "folder":
        short_rows.save_to_disk(str(place))
    elif form == "parquet":
        short_rows.to_parquet(str(place))
    else:
        short_rows.to_json(str(place))
    main(["evaluate", str(python_run), "--data.held-out-source", str(place), "--samples", "1", "--device", "cpu"])
    records = load_records(python_run / "evaluation" / "likelihood.json")
    assert {record.n for record in records} == {len(short_rows)}


@pytest.mark.parametrize("missing", ["tokens", "maskable"])
def test_rows_without_a_column_are_refused(short_rows, tmp_path, missing):
    short_rows.remove_columns(missing).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=f"has no column {missing}"):
        RowsOnDisk(str(tmp_path / "rows.parquet")).load()


def test_relative_files_are_found_again_from_another_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.jsonl").write_text("".join(json.dumps({"text": f"some words, {i} of them"}) + "\n" for i in range(40)))
    monkeypatch.chdir(home)
    data = TextData("a.jsonl", length=16, held_out_rows=4)
    model = TextModel(layers=1, width=16, heads=2, positions=16)
    run = replace(sotu("bell"), data=data, model=model, training=TRAINING, evaluation=HeldOutLikelihood(samples=1))
    run.train("run")
    rows = data.held_out()["tokens"]
    monkeypatch.chdir(tmp_path)
    assert load_run("home/run")[0].data.held_out()["tokens"] == rows
    (tmp_path / "home").rename(tmp_path / "moved")  # the project as a whole
    assert load_run("moved/run")[0].data.held_out()["tokens"] == rows


def test_what_is_here_comes_before_what_was_there(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    assert TextData("a.txt").found_from(tmp_path / "there").source == "a.txt"
    monkeypatch.chdir(tmp_path)
    assert TextData(("a.txt", "*.md")).found_from(tmp_path / "there").source == (
        str(tmp_path / "there/a.txt"),
        "*.md",
    )
    assert TextData("sotu").found_from(tmp_path / "there").source == "sotu"


def test_adapters_of_a_run_from_python_open_on_their_base(tmp_path, words):
    """The README's example: adapters alone are saved, and a mask token was added."""
    import unmask

    model, _ = unmask.from_pretrained(words, lora=unmask.LoRA(rank=2))
    rows = Dataset.from_dict({"tokens": [[3, 4, 5, 6]] * 8, "maskable": [[False, True, True, True]] * 8})
    masking = IndependentMasking(Uniform(), ExactCount())
    last = Trainer(model, masking, rows, config=replace(TRAINING, learning_rate=0.1), out=tmp_path / "run").train()
    again = load_model(last)
    assert again.has_adapters
    noisy = torch.tensor([[3, model.mask_token_id, 5, model.mask_token_id]])
    masked, real = noisy == model.mask_token_id, torch.ones_like(noisy, dtype=torch.bool)
    with torch.no_grad():
        wanted, found = (m.eval().predict(noisy, real, masked) for m in (model, again))
    torch.testing.assert_close(found, wanted)

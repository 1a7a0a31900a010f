"""What methods need of a run before it starts: ids of the tokens that they name, and numbers that rows carry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmask import (
    GIFT,
    Blockwise,
    Delimiters,
    IndependentMasking,
    InverseRate,
    ProgressiveUnmasking,
    SyRM,
    TrainingConfig,
    add_entropies,
)
from unmask.parts import NoEvaluation, named_masking
from unmask.recipes import PromptData, sft, sudoku
from unmask.runs.prepare import check_guide, looked_up, parts_of, with_guide

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Prompts with tags, answers behind a delimiter; no masking chosen."""
    path = tmp_path_factory.mktemp("qa") / "qa.csv"
    path.write_text("q,a\n" + "".join(f"<p> {i} and {i % 7},so #### {i + i % 7}\n" for i in range(90)))
    config = sft(data=PromptData(str(path), prompt="q", response="a"), steps=2, batch_size=4)
    model = replace(config.model, layers=1, width=16, heads=2)
    training = TrainingConfig(steps=2, batch_size=4, warmup_steps=1, threads=1, precision="fp32", tracker="none")
    return replace(config, model=model, training=training, evaluation=NoEvaluation())


def test_tokens_are_looked_up_wherever_they_are_named(run):
    tokenizer = run.data.tokenizer()
    hash_, less = tokenizer.named(["####"]), tokenizer.named(["<"])
    assert tokenizer.decode(hash_) == "#"  # each token of the text, once
    assert tokenizer.named([*hash_, "####", "<"]) == (*hash_, *less)
    inside = Blockwise(IndependentMasking(mask=Delimiters(("####", 0))), size=4)
    assert looked_up((inside, SyRM(tokens=("<",))), tokenizer) == (
        Blockwise(IndependentMasking(mask=Delimiters((*hash_, 0))), size=4),
        SyRM(tokens=less),
    )
    chain = ProgressiveUnmasking(stages=3)
    assert looked_up(chain, None) == chain


def test_what_cannot_be_looked_up_is_refused_before_anything_is_made(run, tmp_path):
    for text in ("Ω", "", "#Ω"):
        wrong = replace(run, masking=IndependentMasking(mask=Delimiters((text,))), objective=InverseRate())
        with pytest.raises(ValueError, match="has no token for"):
            wrong.train(tmp_path / "run")
    with pytest.raises(ValueError, match="no text: give ids"):
        sudoku("isad").check(tmp_path / "run")
    with pytest.raises(ValueError, match=r"tokenizer\.named"):
        Delimiters(("####",)).rate_and_density(torch.rand(1), None, None)
    with pytest.raises(ValueError, match="has no token for 999"):
        run.data.tokenizer().named([999])
    assert not (tmp_path / "run").exists()


def test_gift_reads_the_entropies_of_the_model_that_training_starts_from(run):
    masking, rows = named_masking("gift"), run.data.load().select(range(8))
    torch.manual_seed(3)
    model = run.model.build()
    found = with_guide(**masking, rows=rows, model=model, device=CPU)
    assert found["guide"] == add_entropies(model, rows)["guide"]
    assert (
        with_guide(**masking, rows=found, model=None, device=CPU) is found
    )  # rows with numbers of their own keep them
    assert with_guide(**named_masking("standard"), rows=rows, model=None, device=CPU) is rows


def test_syrm_masks_the_syntax_of_prompts(run):
    rows = run.data.load()
    (token,) = run.data.tokenizer().named(["<"])
    found = with_guide(IndependentMasking(), SyRM(tokens=(token,)), rows, None, CPU)
    for before, after in zip(rows, found, strict=True):
        for i, id_ in enumerate(after["tokens"]):
            assert after["guide"][i] == (id_ == token)
            assert after["maskable"][i] == (before["maskable"][i] or id_ == token)


def test_one_column_serves_one_of_them():
    with pytest.raises(ValueError, match="both read the column"):
        check_guide(IndependentMasking(mask=GIFT()), SyRM(tokens=(1,)), None)
    assert [type(part) for part in parts_of(IndependentMasking(mask=GIFT()))][-1] is GIFT


@pytest.mark.parametrize("name", ["gift", "isad", "syrm"])
def test_each_trains_and_goes_on_by_its_name(run, tmp_path, state_of, name):
    syrm = {"masking": IndependentMasking(), "objective": SyRM(tokens=("<", ">"))}
    chosen = syrm if name == "syrm" else named_masking(name)
    if name == "isad":  # one delimiter of the default's two is known here
        chosen = {**chosen, "masking": replace(chosen["masking"], mask=Delimiters(("####",)))}
    whole = replace(run, **chosen, training=replace(run.training, steps=4, schedule="constant", checkpoint_every=2))
    last = whole.train(tmp_path / "whole")
    whole.train(tmp_path / "cut")
    for step in (tmp_path / "cut" / "checkpoints").glob("step-00000004"):
        for file in sorted(step.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        step.rmdir()
    assert state_of(whole.train(tmp_path / "cut", resume=True)) == state_of(last)

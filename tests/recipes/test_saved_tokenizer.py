"""The tokenizer belongs to the run: it lies beside the weights, is read from there, and is compared on resume."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unmask
from unmask import Trainer
from unmask.data import TextTokenizer
from unmask.data.documents import split_of
from unmask.recipes import RECIPES, PretrainedModel, TextData, TextModel, sotu, sudoku
from unmask.runs.config import Tokenized, load_model, load_run

VOCABULARIES = ["letters", "characters", "bpe", "words"]
TEXT = "the zzz cat sat on mat 7"


@pytest.fixture
def trained(tiny, prose, words, tmp_path):
    """A function that trains a run by a vocabulary: the run and its last checkpoint."""

    def train(vocabulary: str, out: str = "run", *, shifted: bool = False, ema: float | None = None):
        data = TextData(
            source=prose,
            vocabulary=words if vocabulary == "words" else vocabulary,
            vocab_size=270,
            length=32,
            held_out_rows=8,
            first_given=shifted,
        )
        made = data.tokenizer()
        model = TextModel(made.vocab_size, made.mask_token_id, 1, 16, 2, positions=32, shifted=shifted)
        run = replace(sotu(), training=replace(sotu().training, ema_decay=ema))
        return tiny(run, tmp_path / out, data=data, model=model)

    return train


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(pattern: str) -> Path:
    """A new file among the texts to train on, with characters that none of them has."""
    file = Path(pattern).parent / "zz.txt"
    file.write_text(next(t for i in range(99) if split_of(t := f"ÄÖÜ wholly other words ÄÖÜ {i} " * 500) == "train"))
    return file


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_checkpoint_holds_the_tokenizer_that_trained_it(trained, vocabulary):
    run, last = trained(vocabulary, ema=0.5)
    ours = run.data.tokenizer()
    for folder in ("model", "ema"):
        saved = TextTokenizer.load(last / folder)
        for name in ("fingerprint", "eos_token_id", "mask_token_id", "vocab_size"):
            assert getattr(saved, name) == getattr(ours, name)
    assert json.loads((last.parent.parent / "config.json").read_text())["tokenizer"] == ours.fingerprint
    config, _ = load_run(last)
    assert config == replace(run, data=run.data.with_tokenizer(last / "model"))
    assert config.data.tokenizer().fingerprint == ours.fingerprint
    assert config.data.held_out()["tokens"] == run.data.held_out()["tokens"]


def test_run_without_text_has_none(tmp_path):
    run = sudoku()
    training = replace(run.training, steps=1, batch_size=4, tracker="none", threads=1)
    evaluation = replace(run.evaluation, puzzles=5, final_puzzles=5)
    data, model = replace(run.data, limit=8), replace(run.model, layers=1, width=16, heads=2)
    last = replace(run, training=training, evaluation=evaluation, data=data, model=model).train(tmp_path / "run")
    assert not {"tokenizer.json", "tokenizer_config.json", "README.md"} & {p.name for p in (last / "model").iterdir()}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tokenizer"] is None
    assert not isinstance(run.data, Tokenized)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("shifted", [False, True])
def test_model_folder_opens_with_transformers_alone(trained, vocabulary, shifted):
    run, last = trained(vocabulary, shifted=shifted)
    folder, ours = last / "model", run.data.tokenizer()
    theirs, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode(TEXT).tolist()
    assert theirs.mask_token_id == ours.mask_token_id == model.config.mask_token_id
    assert model.config.unmask_shifted == shifted
    card = (folder / "README.md").read_text()
    assert f"`{ours.mask_token}` (id {ours.mask_token_id})" in card
    assert ("position i - 1 predicts token i" in card) == shifted
    assert repr(run.masking) in card
    assert "Step 3 of 3" in card

    again, words = unmask.from_pretrained(folder)
    assert (again.shifted, again.mask_token_id, words.mask_token_id) == (
        shifted,
        ours.mask_token_id,
        ours.mask_token_id,
    )
    noisy = torch.tensor([ours.encode(TEXT).tolist()])
    masked = torch.zeros_like(noisy, dtype=torch.bool)
    masked[0, 2:] = True
    noisy = noisy.masked_fill(masked, ours.mask_token_id)
    attention = torch.ones_like(masked)
    found, wanted = (m.eval().predict(noisy, attention, masked) for m in (again, load_model(last)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vocabulary", ["characters", "bpe"])
def test_texts_that_changed_change_a_learnt_tokenizer_but_not_the_run_s(trained, prose, vocabulary):
    run, last = trained(vocabulary)
    before = run.data.tokenizer()
    changed(prose)
    assert replace(run.data).tokenizer().fingerprint != before.fingerprint  # what would be used without the saved one
    config, _ = load_run(last)
    assert config.data.tokenizer().fingerprint == before.fingerprint


def test_saved_tokenizer_outlives_the_pretrained_one(trained, words):
    run, last = trained("words")
    before = run.data.tokenizer()
    shutil.rmtree(words)
    assert load_run(last)[0].data.tokenizer().fingerprint == before.fingerprint


@pytest.mark.parametrize("vocabulary", ["characters", "bpe"])
def test_resume_with_another_tokenizer_is_refused_until_the_files_are_back(trained, prose, vocabulary):
    run, last = trained(vocabulary)
    out = last.parent.parent
    file, before = changed(prose), content(out)
    again = replace(run, data=replace(run.data))
    for attempt in (again.check, again.train):
        with pytest.raises(ValueError, match=re.escape(f"{out} was trained with another tokenizer")):
            attempt(out, resume=True)
    assert content(out) == before
    file.unlink()
    assert replace(run, data=replace(run.data)).train(out, resume=True) == last


def test_what_is_compared_is_the_tokenizer_not_the_files(trained, prose):
    run, last = trained("letters")
    changed(prose)
    replace(run, data=replace(run.data)).check(last.parent.parent, resume=True)


def test_overwrite_takes_the_new_tokenizer(trained, prose):
    run, last = trained("characters")
    changed(prose)
    new = replace(run.data).tokenizer()
    model = replace(run.model, vocab_size=new.vocab_size, mask_token_id=new.mask_token_id)
    again = replace(run, data=replace(run.data), model=model).train(last.parent.parent, overwrite=True)
    assert TextTokenizer.load(again / "model").fingerprint == new.fingerprint


def test_run_of_a_version_that_did_not_save_it_goes_on(trained, prose):
    run, last = trained("characters")
    path = last.parent.parent / "config.json"
    saved = json.loads(path.read_text())
    del saved["tokenizer"]
    path.write_text(json.dumps(saved))
    assert run.train(path.parent, resume=True) == last
    shutil.rmtree(last.parent)  # nor did its checkpoints hold one
    again = run.train(path.parent, resume=True)
    assert load_run(again)[0].data.tokenizer().fingerprint == run.data.tokenizer().fingerprint


def test_trainer_itself_compares_and_checks(trained, prose, tmp_path):
    run, last = trained("characters")
    rows, out = run.data.load(), last.parent.parent

    def trainer(tokenizer: TextTokenizer) -> Trainer:
        return Trainer(
            load_model(last),
            run.masking,
            rows,
            run.objective,
            replace(run.training, evaluate_every=None),
            out=out,
            run=run.described,
            tokenizer=tokenizer,
        )

    ours = run.data.tokenizer()
    assert trainer(ours).train(resume=True) == last
    letters = TextData().tokenizer()
    with pytest.raises(ValueError, match=f"mask token is {letters.mask_token_id}"):
        trainer(letters)
    swapped = replace(ours, eos_token_id=0)  # the same tokens, but another one ends a text
    with pytest.raises(ValueError, match="another tokenizer"):
        trainer(swapped).train(resume=True)


def test_a_new_run_can_take_over_a_saved_tokenizer(trained, tiny, tmp_path):
    run, last = trained("characters")
    data = run.data.with_tokenizer(last / "model")
    again, new = tiny(sotu(), tmp_path / "again", data=data, model=run.model)
    assert TextTokenizer.load(new / "model").fingerprint == run.data.tokenizer().fingerprint
    assert again.data.load()["tokens"] == run.data.load()["tokens"]


def test_corpus_reads_the_saved_one_and_keeps_its_end_token(tiny, words, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(json.dumps({"question": f"{a}{b}?", "code": a}) + "\n" for a in "abcdef" for b in "gh=")
    )
    run = RECIPES["tinygsm"]("standard")
    data = replace(run.data, source=str(source), tokenizer_name=words, end_token="#", length=16, held_out_rows=4)
    _, last = tiny(run, tmp_path / "run", data=data, model=PretrainedModel(words, shifted=False))
    ours, saved = data.tokenizer(), load_run(last)[0].data.tokenizer()
    assert ours.eos_token_id == saved.eos_token_id == ours.encode("#")[0]
    assert saved.fingerprint == ours.fingerprint


def test_a_library_that_writes_tokenizers_otherwise_does_not_stop_a_run(trained):
    run, last = trained("bpe")
    out = last.parents[1]
    saved = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**saved, "tokenizer": "what another release would have hashed to"}))
    run.train(out, resume=True)  # the tokenizer beside the weights is the same one


def test_a_tokenizer_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()  # as a full disk would be: what a checkpoint reports to all ranks
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        sotu().data.tokenizer().save(tmp_path)

"""What is held out: documents by their content, or files; and clear words, at once, where that leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from unmask import PPOTS, IndependentMasking
from unmask.data.documents import split_of
from unmask.recipes import CorpusData, PretrainedModel, PromptData, SequenceData, TextData, TextModel, sotu


@pytest.fixture
def book(tmp_path):
    """One long text file, which is one document, and not among those held out."""
    text = next(t for t in (f"chapter {i} " * 400 for i in range(99)) if split_of(t) == "train")
    (tmp_path / "book.txt").write_text(text)
    return tmp_path / "book.txt"


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other.txt").write_text("quite another text " * 40)
    return tmp_path / "other.txt"


def written(data: TextData, rows) -> str:
    return "".join(data.tokenizer().decode(row) for row in rows["tokens"])


def test_one_file_is_refused_before_anything_is_built(book, tmp_path):
    nowhere = str(tmp_path / "nowhere")  # neither tokenizer nor model can be loaded: the message is not about them
    run = replace(sotu(), data=TextData(str(book), vocabulary=nowhere), model=PretrainedModel(nowhere))
    for attempt in (run.check, run.train):
        with pytest.raises(ValueError, match=r"no document of .*book\.txt is held out.*held_out_source.*\.jsonl"):
            attempt(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_are_held_out_whole_and_the_source_is_trained_on_whole(book, other):
    data = TextData(str(book), held_out_source=str(other), vocabulary="characters", length=64, held_out_rows=999)
    data.check()
    assert written(data, data.load()) == book.read_text()
    letters = replace(data, vocabulary="letters")
    assert written(letters, letters.held_out()) == other.read_text().strip()


def test_without_files_nothing_of_the_validation_part_is_trained_on(tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": f"number {i} "}) + "\n" for i in range(60)))
    data = TextData(str(tmp_path / "lines.jsonl"), vocabulary="characters", packing="document", ending="untrained")
    data.check()
    apart = data.held_out()["tokens"]
    assert len(apart) > 0
    assert not {tuple(row) for row in apart} & {tuple(row) for row in data.load()["tokens"]}


@pytest.mark.parametrize("source", ["other.txt", ".", "*.txt"])
def test_a_file_that_is_trained_on_cannot_be_held_out(book, other, tmp_path, source):
    data = TextData(str(tmp_path / source), held_out_source=(str(other),))
    with pytest.raises(ValueError, match=r"other\.txt is in both source and held_out_source"):
        data.check()
    replace(data, source=str(book)).check()


def test_names_on_the_hub_are_held_out_like_files(monkeypatch):
    monkeypatch.setattr("unmask.parts.text.read_documents", lambda *_: iter([{"text": "a", "p": "b", "r": "c"}] * 2))
    for data in (TextData("hub:a/b"), PromptData("hub:a/b", prompt="p", response="r")):
        replace(data, held_out_source="hub:a/c").check()
        with pytest.raises(ValueError, match=r"hub:a/b is in both source and held_out_source"):
            replace(data, held_out_source=("hub:a/b", "hub:a/c")).check()


def test_sequences_that_are_held_out_apart_are_checked_like_texts(tmp_path):
    for name, count in (("many", 20), ("few", 1)):
        (tmp_path / f"{name}.fasta").write_text("".join(f">{i}\nACGT{'AC' * i}\n" for i in range(count)))
    many, few = (str(tmp_path / f"{name}.fasta") for name in ("many", "few"))
    with pytest.raises(ValueError, match=r"many\.fasta is in both source and held_out_source"):
        SequenceData(many, held_out_source=many).check()
    with pytest.raises(ValueError, match=r"few\.fasta, which are held out, there is only one, and an interval needs"):
        SequenceData(many, held_out_source=few).check()
    prompts = PromptData(str(tmp_path / "many.jsonl"), str(tmp_path / "few.jsonl"))
    for name, count in (("many", 20), ("few", 1)):
        lines = (json.dumps({"prompt": f"{name} {i}", "response": "a"}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match=r"few\.jsonl holds 1 document, and 2 must be held out"):
        prompts.check()


def test_a_corpus_holds_files_out_in_the_same_way(words, tmp_path):
    files = {}
    for name, letters in {"train": "abcdefgh", "test": "xyz"}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"question": f"{a}?", "code": a}) + "\n" for a in letters))
    data = CorpusData("tinygsm", str(files["train"]), str(files["test"]), tokenizer_name=words, length=16)
    data.check()
    assert (len(data.load()), len(data.held_out())) == (8, 3)
    with pytest.raises(ValueError, match="is in both"):
        replace(data, held_out_source=str(files["train"])).check()


def test_a_corpus_of_too_few_files_says_so(words, tmp_path):
    lines = [json.dumps({"question": f"{i}?", "code": "a"}) for i in range(99) if split_of(f"{i}?") != "validation"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = CorpusData("tinygsm", str(tmp_path / "train.jsonl"), tokenizer_name=words)
    with pytest.raises(ValueError, match="is held out"):
        data.check()


def test_what_evaluates_a_run_chooses_nothing_in_it(tiny, prose, tmp_path):
    """P-POTS is fitted during training, and other held-out rows change no weight of the model."""
    time = PPOTS(refit_every=2, grid=4, rows=2, masks=1)
    run = replace(sotu("ppots"), masking=IndependentMasking(time))
    model, weights = TextModel(layers=1, width=16, heads=2, positions=32), []
    for rows in (2, 16):
        data = TextData(source=prose, length=32, held_out_rows=rows)
        _, last = tiny(run, tmp_path / str(rows), data=data, model=model)
        weights.append((last / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]

import json
from dataclasses import replace

import pytest

from unmask.data import GSM8K, LM1B, OPENWEBTEXT, TINYGSM, character_tokenizer
from unmask.data.documents import split_of

# One or two documents of each data set's form, made up.
LINES = {
    "lm1b": [{"text": "The ministers met on Tuesday , and parted ."}, {"text": "It rained . No one came ."}],
    "openwebtext": [{"text": f"Page {i}.\n\nIt has two parts. And an end."} for i in range(40)],
    "tinygsm": [
        {"question": "Ann has 2 pens and buys 3. How many has she?", "code": "def solution():\n    return 2 + 3"},
        {"question": "Bo eats 1 of 4 figs. How many are left?", "code": "def solution():\n    return {4 - 1}.pop()"},
    ],
    "gsm8k": [
        {"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = <<2+3=5>>5 pens.\n#### 5"},
        {"question": "Bo eats 1 of 4 figs. How many are left?", "answer": "4 - 1 = <<4-1=3>>3 figs.\n#### 3"},
    ],
}
CORPORA = {"lm1b": LM1B, "openwebtext": OPENWEBTEXT, "tinygsm": TINYGSM, "gsm8k": GSM8K}


@pytest.fixture
def tokenizer():
    return character_tokenizer([json.dumps(LINES) + "\n"])


def files(folder, name):
    """The data set as it would lie on the hub: a file for each split."""
    for split in CORPORA[name].splits or ("train",):
        lines = LINES[name] if split == "train" else LINES[name][::-1]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def texts(rows, tokenizer):
    return [tokenizer.decode(row).split("<|endoftext|>")[0] for row in rows["tokens"]]


def replies(rows, tokenizer):
    parts = zip(rows["tokens"], rows["maskable"], strict=True)
    return [tokenizer.decode(t for t, m in zip(*row, strict=True) if m).split("<|endoftext|>")[0] for row in parts]


@pytest.mark.parametrize("name", CORPORA)
def test_files_and_hub_give_the_same_rows(name, tmp_path, tokenizer):
    """A folder stands for the hub: `datasets.load_dataset` reads both in the same way, and no network is used."""
    folder = files(tmp_path, name)
    there = replace(CORPORA[name], hub=str(folder), subset=None)
    for split in there.splits or ("train", "all"):
        options = {"tokenizer": tokenizer, "length": 120}
        file = folder / f"{split if there.splits else 'train'}.jsonl"
        local = there.load(split, source=file, **options)
        assert there.load(split, **options)[:] == local[:]
        cache = tmp_path / "cache"
        assert there.load(split, cache=cache, revision="1", **options)[:] == local[:]
        assert there.load(split, cache=cache, source=file, **options)[:] == local[:]


def test_lm1b_has_a_sentence_a_row(tmp_path, tokenizer):
    folder = files(tmp_path, "lm1b")
    rows = LM1B.load("test", tokenizer=tokenizer, length=60, source=folder / "test.jsonl")
    assert texts(rows, tokenizer) == [line["text"] for line in LINES["lm1b"][::-1]]


def test_openwebtext_is_packed_and_divided_by_content(tmp_path, tokenizer):
    source = files(tmp_path, "openwebtext") / "train.jsonl"
    seen = []
    for split in ("train", "validation", "test"):
        wanted = [line["text"] for line in LINES["openwebtext"] if split_of(line["text"]) == split]
        rows = OPENWEBTEXT.load(split, tokenizer=tokenizer, length=16, source=source)
        whole = tokenizer.decode(token for row in rows["tokens"] for token in row)
        assert whole.split("<|endoftext|>") == wanted
        seen += wanted
    assert sorted(seen) == sorted(line["text"] for line in LINES["openwebtext"])


@pytest.mark.parametrize(("name", "answer"), [("tinygsm", "code"), ("gsm8k", "answer")])
def test_questions_are_given_and_answers_learnt(tmp_path, tokenizer, name, answer):
    source = files(tmp_path, name) / "train.jsonl"
    split = "train" if CORPORA[name].splits else "all"
    rows = CORPORA[name].load(split, tokenizer=tokenizer, length=150, ending="eos_as_padding", source=source)
    assert texts(rows, tokenizer) == [f"{line['question']}\n{line[answer]}" for line in LINES[name]]
    assert replies(rows, tokenizer) == [line[answer] for line in LINES[name]]
    assert {len(row) for row in rows["tokens"]} == {150}
    shortest = min(len(f"{line['question']}\n{line[answer]}") + 1 for line in LINES[name])
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        kept = CORPORA[name].load(split, tokenizer=tokenizer, length=shortest, source=source)
    assert len(kept) == 1


def test_nothing_is_asked_of_the_hub_before_a_document_is(monkeypatch):
    monkeypatch.setattr("unmask.data.corpora.load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    for corpus in CORPORA.values():
        corpus.documents("train")


def test_versions_tell_states_apart(tmp_path):
    source = files(tmp_path, "gsm8k") / "train.jsonl"
    made = [
        GSM8K.version("train", revision="a"),
        GSM8K.version("train", revision="b"),
        GSM8K.version("test", revision="a"),
    ]
    made += [GSM8K.version("train", source), replace(GSM8K, hub="other/name").version("train", revision="a")]
    source.write_text(source.read_text() + "\n")
    made.append(GSM8K.version("train", source))
    assert len(set(made)) == len(made)


def test_bad_requests_say_what_there_is(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="Known: train, test"):
        GSM8K.documents("validation")
    with pytest.raises(ValueError, match="Known: train, validation, test, all"):
        OPENWEBTEXT.documents("dev")
    with pytest.raises(ValueError, match="to cache rows of openai/gsm8k, name its state"):
        GSM8K.load("train", tokenizer=tokenizer, length=99, cache=tmp_path)
    source = files(tmp_path, "lm1b") / "train.jsonl"
    with pytest.raises(ValueError, match=r"train\.jsonl:1 has no column 'question'; it has \['text'\]"):
        GSM8K.load("train", tokenizer=tokenizer, length=99, source=source)
    there = replace(GSM8K, hub=str(tmp_path), subset=None)
    with pytest.raises(ValueError, match=r"has no column 'question'; it has \['text'\]"):
        there.load("train", tokenizer=tokenizer, length=99)

import hashlib
import importlib.util
import json
import lzma
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data import RowStream, check_rows, text
from unmask.data.text import (
    LETTERS,
    TextTokenizer,
    bpe_tokenizer,
    character_tokenizer,
    load_documents,
    load_text,
    split_of,
    tokenize,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sotu.py"
SPLITS = ("train", "validation", "test")
DOCUMENTS = ["One is here. Is two? Yes!", "Mr. Fox had $3.50.\n\nThen \u2013 naïve 🦊 \u201cgone.\u201d The end"]


@pytest.fixture(scope="module")
def addresses():
    return {split: load_documents("sotu", split) for split in (*SPLITS, "all")}


@pytest.fixture(scope="module")
def tokenizers(addresses):
    some = addresses["validation"]["text"][:5] + DOCUMENTS
    return {
        "27": character_tokenizer(alphabet="27"),
        "characters": character_tokenizer(some),
        "bpe": bpe_tokenizer(some, 400),
    }


@pytest.fixture(params=["27", "characters", "bpe"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def as_dataset(*texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def same_as_library(tokenizer, value):
    """What the `tokenizers` library gives, without this module's short cut."""
    return tokenizer.tokenizer.encode(value, add_special_tokens=False).ids


# --- documents and splits ---


def test_splits_share_no_address_and_leave_none_out(addresses):
    assert len(addresses["all"]) == len(set(addresses["all"]["text"])) == 233
    parts = [value for split in SPLITS for value in addresses[split]["text"]]
    assert sorted(parts) == sorted(addresses["all"]["text"])
    for split in SPLITS:
        assert {split_of(value) for value in addresses[split]["text"]} == {split}


def test_split_sizes_are_roughly_eight_to_one_to_one(addresses):
    characters = {split: sum(map(len, addresses[split]["text"])) for split in SPLITS}
    total = sum(characters.values())
    assert total == 10_759_787
    assert 0.78 < characters["train"] / total < 0.83
    assert 0.08 < characters["validation"] / total < 0.12
    assert 0.08 < characters["test"] / total < 0.12


def test_addresses_say_who_and_when(addresses):
    years = addresses["all"]["year"]
    assert list(years) == sorted(years)
    assert (years[0], years[-1]) == (1790, 2021)
    assert {"George Washington", "John F. Kennedy", "William McKinley"} <= set(addresses["all"]["president"])
    assert addresses["all"].cache_files == []


def test_the_bundled_file_is_small_and_states_its_source():
    files = Path(text.__file__).parent / "files"
    assert (files / "sotu.json.xz").stat().st_size < 3_000_000
    assert "public domain" in (files / "SOTU_LICENSE.txt").read_text()


def test_a_document_alone_decides_its_split(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(60)]
    for i, path in enumerate(paths):
        path.write_text(f"Document {i}.")
    of_all = {split: set(load_documents(paths, split)["file"]) for split in SPLITS}
    assert sum(map(len, of_all.values())) == len(set().union(*of_all.values())) == 60
    fewer = load_documents(paths[::-1][:40], "train")["file"]
    assert set(fewer) == of_all["train"] & {str(path) for path in paths[20:]}
    assert load_documents(paths, "all")["file"] == [str(path) for path in paths]


def test_line_ends_and_byte_order_marks_are_removed(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r")
    assert load_documents(path, "all")["text"] == ["one\ntwo\n"]
    assert load_documents(str(path), "all")["text"] == ["one\ntwo\n"]


def test_a_file_that_is_not_utf8_names_file_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("ab café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 6 .* is 0xe9"):
        load_documents([path], "all")


def test_bad_sources_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="'sotuu'; the bundled texts are: sotu"):
        load_documents("sotuu")
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        load_documents("sotu", "valid")
    path = tmp_path / "one.txt"
    path.write_text("one")
    other = next(split for split in SPLITS if split != split_of("one"))
    with pytest.raises(ValueError, match=r"none of the 1 documents .* split='all'"):
        load_documents(path, other)


# --- tokenizers ---


def test_the_27_characters():
    tokenizer = character_tokenizer(alphabet="27")
    assert len(LETTERS) == len(set(LETTERS)) == 27
    assert (tokenizer.vocab_size, tokenizer.mask_token_id, tokenizer.eos_token_id) == (28, 27, 0)
    assert tokenizer.encode(LETTERS[1:]).tolist() == list(range(1, 27))
    assert tokenizer.decode(range(27)) == LETTERS
    assert tokenizer.decode(tokenizer.encode(" It's 1,790\n—NAÏVE! ")) == "it s na ve"
    assert tokenizer.decode(tokenizer.encode("\u212a\u0130Q")) == "q"  # their lower case would have an English letter
    assert tokenizer.encode("1790").tolist() == []


def test_special_tokens_come_last(tokenizer):
    assert tokenizer.mask_token_id == tokenizer.vocab_size - 1
    if tokenizer.vocab_size > 28:
        assert tokenizer.eos_token_id == tokenizer.vocab_size - 2


def test_round_trip(tokenizers):
    for name in ("characters", "bpe"):
        for value in DOCUMENTS:
            assert tokenizers[name].decode(tokenizers[name].encode(value)) == value
    foreign = "Ω 日本 \x00\r\n\t"
    assert tokenizers["bpe"].decode(tokenizers["bpe"].encode(foreign)) == foreign
    assert "<|unknown|>" in tokenizers["characters"].decode(tokenizers["characters"].encode(foreign))
    letters = "to be or not to be"
    assert tokenizers["27"].decode(tokenizers["27"].encode(letters)) == letters


@settings(max_examples=150, deadline=None)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" azAZ.\n\u212a\u0130")), max_size=30))
def test_the_short_cut_is_the_library(tokenizers, value):
    for tokenizer in (tokenizers["27"], tokenizers["characters"]):
        assert tokenizer.encode(value).tolist() == same_as_library(tokenizer, value)


def test_texts_cannot_spell_special_tokens(tokenizer):
    tokens = tokenizer.encode("a<|mask|>b<|endoftext|><|unknown|>")
    assert tokenizer.mask_token_id not in tokens
    if tokenizer.vocab_size > 28:
        assert tokenizer.eos_token_id not in tokens


def test_special_tokens_are_spelt_out(tokenizers):
    for name in ("27", "characters", "bpe"):
        tokenizer = tokenizers[name]
        assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.mask_token_id]) == "ab<|mask|>"


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = TextTokenizer.load(tmp_path / "new" / "folder")
    for name in ("fingerprint", "vocab_size", "eos_token_id", "mask_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for value in (*DOCUMENTS, "<|mask|>"):
        assert np.array_equal(loaded.encode(value), tokenizer.encode(value))
        assert loaded.encode(value).dtype == np.int32


def test_transformers_opens_what_is_saved(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other.mask_token_id == tokenizer.mask_token_id
    assert other(DOCUMENTS[1])["input_ids"] == tokenizer.encode(DOCUMENTS[1]).tolist()


def test_a_folder_without_a_mask_token_is_refused(tokenizers, tmp_path):
    tokenizers["bpe"].save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = json.loads(config.read_text())
    for change, missing in (({"mask_token": None}, "mask_token"), ({"eos_token": {"content": "</s>"}}, "eos_token")):
        config.write_text(json.dumps(named | change))
        with pytest.raises(ValueError, match=f"has no {missing}"):
            TextTokenizer.load(tmp_path)


def test_fingerprint_follows_the_vocabulary():
    made = [bpe_tokenizer(DOCUMENTS, size) for size in (258, 260, 260)]
    made += [character_tokenizer(["ab"]), character_tokenizer(["abc"]), character_tokenizer(alphabet="27")]
    prints = [tokenizer.fingerprint for tokenizer in made]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 5
    assert prints[0] == hashlib.sha256(made[0].tokenizer.to_str().encode()).hexdigest()


def test_bad_tokenizers_are_refused():
    with pytest.raises(ValueError, match="at least 258"):
        bpe_tokenizer(DOCUMENTS, 257)
    with pytest.raises(ValueError, match="did you mean '27'"):
        character_tokenizer(DOCUMENTS, alphabet="26")
    with pytest.raises(ValueError, match="no characters"):
        character_tokenizer([""])


# --- rows ---


@pytest.mark.parametrize("length", [1, 7, 64, 10**6])
def test_packing_loses_no_token(tokenizer, length):
    rows = tokenize(as_dataset(*DOCUMENTS), "text", tokenizer, length)
    first, second = (tokenizer.encode(value).tolist() for value in DOCUMENTS)
    expected = [*first, tokenizer.eos_token_id, *second]
    assert [token for row in rows["tokens"] for token in row] == expected
    lengths = [len(row) for row in rows["tokens"]]
    assert set(lengths[:-1]) <= {length}
    assert 1 <= lengths[-1] <= length
    assert [len(row) for row in rows["maskable"]] == lengths
    assert all(all(row) for row in rows["maskable"])


def test_packing_a_whole_number_of_rows_adds_no_empty_one():
    tokenizer = character_tokenizer(alphabet="27")
    assert tokenize(as_dataset("abc", "de"), "text", tokenizer, 3)["tokens"] == [[1, 2, 3], [0, 4, 5]]


def test_letters_pack_into_one_text(tokenizers):
    rows = tokenize(as_dataset("One.", "Two!"), "text", tokenizers["27"], 100)
    assert tokenizers["27"].decode(rows[0]["tokens"]) == "one two"


def test_one_sentence_a_row(tokenizers):
    rows = tokenize(as_dataset(*DOCUMENTS), "text", tokenizers["bpe"], 1000, "sentence")
    sentences = [
        "One is here.",
        "Is two?",
        "Yes!",
        "Mr. Fox had $3.50.",
        "Then \u2013 naïve 🦊 \u201cgone.\u201d",
        "The end",
    ]
    assert [tokenizers["bpe"].decode(row) for row in rows["tokens"]] == sentences
    short = tokenize(as_dataset(*DOCUMENTS), "text", tokenizers["bpe"], 3, "sentence")
    assert short["tokens"] == [row[:3] for row in rows["tokens"]]
    assert all(all(row) for row in short["maskable"])
    assert [len(row) for row in short["maskable"]] == [len(row) for row in short["tokens"]]


def test_sentences_across_lines_and_around_initials(tokenizers):
    value = "It was\n  wrapped by J. Q. Adams. (So it was.) Then no. 5 came"
    rows = tokenize(as_dataset(value), "text", tokenizers["bpe"], 1000, "sentence")["tokens"]
    expected = ["It was wrapped by J. Q. Adams.", "(So it was.)", "Then no. 5 came"]
    assert [tokenizers["bpe"].decode(row) for row in rows] == expected


@pytest.mark.parametrize("packing", ["packed", "sentence"])
def test_empty_documents_are_dropped_and_counted(tokenizers, packing):
    documents = as_dataset("One.", "", " \n", None, "1790", "Two.")
    with pytest.warns(UserWarning, match="dropped 4 of 6 .* first document 1"):
        rows = tokenize(documents, "text", tokenizers["27"], 100, packing)
    assert rows[:] == tokenize(as_dataset("One.", "Two."), "text", tokenizers["27"], 100, packing)[:]


def test_many_documents_keep_their_order(tokenizers):
    documents = [f"Word {'x' * (i % 7)} {'y' * (i % 11)}." for i in range(600)]  # more than one batch
    rows = tokenize(as_dataset(*documents), "text", tokenizers["bpe"], 1000, "sentence")
    assert [tokenizers["bpe"].decode(row) for row in rows["tokens"]] == [" ".join(d.split()) for d in documents]


def test_bad_rows_are_refused(tokenizers):
    tokenizer = tokenizers["27"]
    with pytest.raises(ValueError, match=r"no column 'body'; it has \['text'\]"):
        tokenize(as_dataset("a"), "body", tokenizer)
    with pytest.raises(ValueError, match="did you mean 'packed'"):
        tokenize(as_dataset("a"), "text", tokenizer, packing="pack")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tokenize(as_dataset("a"), "text", tokenizer, 0)
    with pytest.raises(ValueError, match="none of the 2 documents"):
        tokenize(as_dataset("", "17"), "text", tokenizer)
    with pytest.raises(TypeError, match="document 0 in column 'text' is int"):
        tokenize(datasets.Dataset.from_dict({"text": [3, 4]}), "text", tokenizer)
    with pytest.raises(TypeError, match="choose a split"):
        tokenize(datasets.DatasetDict(train=as_dataset("a")), "text", tokenizer)


def test_wide_vocabularies_get_wide_tokens():
    narrow, wide = (
        tokenize(as_dataset("ab"), "text", character_tokenizer(map(chr, range(97, 97 + n)))) for n in (1000, 32_766)
    )
    assert narrow.features["tokens"].feature.dtype == "int16"
    assert wide.features["tokens"].feature.dtype == "int32"


def test_rows_go_through_the_stream(tokenizer):
    rows = load_text("sotu", "test", tokenizer=tokenizer, length=4096)
    check_rows(rows, tokenizer.mask_token_id, tokenizer.vocab_size)
    assert rows.cache_files == []
    batch = RowStream(rows).rows(torch.tensor([0, len(rows) - 1]))
    assert batch.attention.sum(dim=1).tolist() == [4096, len(rows[-1]["tokens"])]
    assert torch.equal(batch.maskable, batch.attention)


# --- the script ---


def test_script_reads_file_names_and_drops_repeats():
    spec = importlib.util.spec_from_file_location("make_sotu", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    names = [f"package/sotu/data/{name}" for name in ("1901_b_c_d_r.txt", "1900_william_mc_kinley_r.txt")]
    script.ADDRESSES = 2
    made = script.make_addresses({names[0]: b" x\n", names[1]: b"y", names[0].replace("1901", "1902"): b"x"})
    assert made == [
        {"year": 1900, "president": "William McKinley", "text": "y"},
        {"year": 1901, "president": "B. C. D.", "text": "x"},
    ]
    assert json.loads(lzma.decompress(script.pack(made))) == made

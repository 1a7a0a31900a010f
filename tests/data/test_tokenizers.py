import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from unmask.data.tokenizers import LETTERS, UNKNOWN_TOKEN, TextTokenizer, bpe_tokenizer, character_tokenizer


def same_as_library(tokenizer, value):
    """What the `tokenizers` library gives, without this module's short cut."""
    return tokenizer.tokenizer.encode(value, add_special_tokens=False).ids


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


def test_round_trip(tokenizers, two_documents):
    for name in ("characters", "bpe"):
        for value in two_documents:
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


def test_saved_and_loaded(tokenizer, tmp_path, two_documents):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = TextTokenizer.load(tmp_path / "new" / "folder")
    for name in ("fingerprint", "vocab_size", "eos_token_id", "mask_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for value in (*two_documents, "<|mask|>"):
        assert np.array_equal(loaded.encode(value), tokenizer.encode(value))
        assert loaded.encode(value).dtype == np.int32


def test_transformers_opens_what_is_saved(tokenizer, tmp_path, two_documents):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other.mask_token_id == tokenizer.mask_token_id
    assert other(two_documents[1])["input_ids"] == tokenizer.encode(two_documents[1]).tolist()


def test_a_folder_without_a_mask_token_is_refused(tokenizers, tmp_path):
    tokenizers["bpe"].save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = json.loads(config.read_text())
    for change, missing in (({"mask_token": None}, "mask_token"), ({"eos_token": {"content": "</s>"}}, "eos_token")):
        config.write_text(json.dumps(named | change))
        with pytest.raises(ValueError, match=f"has no {missing}"):
            TextTokenizer.load(tmp_path)


def test_fingerprint_follows_the_vocabulary(two_documents):
    made = [bpe_tokenizer(two_documents, size) for size in (258, 260, 260)]
    made += [character_tokenizer(["ab"]), character_tokenizer(["abc"]), character_tokenizer(alphabet="27")]
    prints = [tokenizer.fingerprint for tokenizer in made]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 5
    one = made[0]
    whole = f"{one.tokenizer.to_str()} {one.eos_token_id} {one.mask_token_id}"
    assert one.fingerprint == hashlib.sha256(whole.encode()).hexdigest()
    assert replace(one, eos_token_id=7).fingerprint != one.fingerprint  # what it makes of several texts differs


def test_text_before_the_first_end(tokenizers):
    for name in ("characters", "bpe"):
        tokenizer = tokenizers[name]
        assert tokenizer.marks_ends
        tokens, end = tokenizer.encode("ab").tolist(), tokenizer.eos_token_id
        assert tokenizer.first_text([*tokens, end, *tokens, end]) == "ab"
        assert tokenizer.first_text(tokens) == "ab"
        assert tokenizer.first_text([end, *tokens]) == ""
    letters = tokenizers["27"]
    assert not letters.marks_ends
    assert letters.first_text(letters.encode("a b c")) == "a b c"


def test_bad_tokenizers_are_refused(two_documents):
    with pytest.raises(ValueError, match="at least 258"):
        bpe_tokenizer(two_documents, 257)
    with pytest.raises(ValueError, match=r"unknown alphabet '26'\. Known: 27"):
        character_tokenizer(two_documents, alphabet="26")
    with pytest.raises(ValueError, match="no characters"):
        character_tokenizer([""])


# --- tokenizers of transformers ---


@pytest.fixture
def hugging_face(tokenizers, tmp_path):
    from transformers import AutoTokenizer

    tokenizers["bpe"].save(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_taken_from_hugging_face(tokenizers, hugging_face, two_documents):
    ours = TextTokenizer.from_hugging_face(hugging_face)
    assert (ours.eos_token_id, ours.mask_token_id) == (hugging_face.eos_token_id, hugging_face.mask_token_id)
    assert ours.vocab_size == len(hugging_face) == tokenizers["bpe"].vocab_size
    for value in two_documents:
        assert ours.encode(value).tolist() == hugging_face(value, add_special_tokens=False)["input_ids"]
    # Ours reads special tokens as text; the one it was taken from still reads them as special.
    assert ours.mask_token_id not in ours.encode("<|mask|>")
    assert hugging_face("<|mask|>")["input_ids"] == [hugging_face.mask_token_id]


def test_tokens_that_are_added_later_count(hugging_face):
    hugging_face.add_special_tokens({"mask_token": "<new>"})
    ours = TextTokenizer.from_hugging_face(hugging_face)
    assert ours.mask_token_id == ours.vocab_size - 1 == len(hugging_face) - 1
    assert ours.mask_token_id not in ours.encode("<new>")


def test_foreign_character_tokenizers_do_as_their_library_does(tokenizers):
    """Of the form that is looked up in a table here, but with another unknown token, none, or another alphabet."""
    letters = json.loads(tokenizers["27"].tokenizer.to_str())
    plain = json.loads(tokenizers["characters"].tokenizer.to_str())
    plain["model"] |= {"vocab": {"a": 0, "b": 1, "<unk>": 2, UNKNOWN_TOKEN: 3}, "unk_token": "<unk>"}
    added = json.loads(json.dumps(plain))
    added["added_tokens"].append(added["added_tokens"][0] | {"id": 6, "content": "ab", "special": False})
    backwards = json.loads(json.dumps(letters))
    backwards["model"]["vocab"] = {token: 26 - i for token, i in letters["model"]["vocab"].items()}
    for form, text, tokens in (
        (plain, "aba", [0, 1, 0]),
        (plain, "a~b", [0, 2, 1]),
        (added, "aab", [0, 6]),
        (letters, "Ab, c", [1, 2, 0, 3]),
        (backwards, "Ab, c", [25, 24, 26, 23]),
    ):
        tokenizer = TextTokenizer(Tokenizer.from_str(json.dumps(form)), eos_token_id=0, mask_token_id=0)
        assert tokenizer.encode(text).tolist() == tokens
        assert tokenizer.tokenizer.encode(text, add_special_tokens=False).ids == tokens
    del plain["model"]["vocab"]["<unk>"]
    tokenizer = TextTokenizer(Tokenizer.from_str(json.dumps(plain)), eos_token_id=0, mask_token_id=0)
    assert tokenizer.encode("aba").tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"the tokenizer cannot write these texts: .*UNK"):
        tokenizer.encode("a~b")


@pytest.mark.parametrize(("name", "remedy"), [("mask_token", "from_pretrained"), ("eos_token", "sep_token")])
def test_what_hugging_face_lacks_is_named(hugging_face, name, remedy):
    setattr(hugging_face, name, None)
    with pytest.raises(ValueError, match=f"no .* token: .*{remedy}"):
        TextTokenizer.from_hugging_face(hugging_face)


def test_slow_tokenizers_are_refused():
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match=r"ByT5Tokenizer is not a fast tokenizer.*rows of its ids"):
        TextTokenizer.from_hugging_face(ByT5Tokenizer())


def test_a_model_of_another_vocabulary_is_refused(tokenizers):
    tokenizer = tokenizers["27"]
    tokenizer.check_model(27, 28)
    tokenizer.check_model(27, 64)  # models round their vocabulary up
    with pytest.raises(ValueError, match=r"the tokenizer has 28 tokens, the model 27: .* vocab_size=28"):
        tokenizer.check_model(26, 27)
    with pytest.raises(
        ValueError, match=r"mask token is 27 \(of 28 tokens\), the model's 63 \(of 64\): .* mask_token_id=27"
    ):
        tokenizer.check_model(63, 64)

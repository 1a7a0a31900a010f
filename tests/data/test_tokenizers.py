import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.tokenizers import LETTERS, TextTokenizer, bpe_tokenizer, character_tokenizer


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
    assert prints[0] == hashlib.sha256(made[0].tokenizer.to_str().encode()).hexdigest()


def test_bad_tokenizers_are_refused(two_documents):
    with pytest.raises(ValueError, match="at least 258"):
        bpe_tokenizer(two_documents, 257)
    with pytest.raises(ValueError, match="did you mean '27'"):
        character_tokenizer(two_documents, alphabet="26")
    with pytest.raises(ValueError, match="no characters"):
        character_tokenizer([""])

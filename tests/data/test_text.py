import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from unmask.data import GSM8K, LM1B, RowStream, TextTokenizer, check_rows
from unmask.data.text import load_text, stream_text, tokenize, tokenize_stream
from unmask.data.tokenizers import character_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*were cut")


def as_dataset(*texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


@pytest.mark.parametrize("length", [1, 7, 64, 10**6])
def test_packing_loses_no_token(tokenizer, length, two_documents):
    rows = tokenize(as_dataset(*two_documents), "text", tokenizer, length)
    first, second = (tokenizer.encode(value).tolist() for value in two_documents)
    expected = [*first, tokenizer.eos_token_id, *second]
    assert [token for row in rows["tokens"] for token in row] == expected
    lengths = [len(row) for row in rows["tokens"]]
    assert set(lengths[:-1]) <= {length}
    assert 1 <= lengths[-1] <= length
    assert [len(row) for row in rows["maskable"]] == lengths
    assert all(all(row) for row in rows["maskable"])


@pytest.mark.parametrize("packing", ["packed", "apart", "sentence", "document"])
@pytest.mark.parametrize("length", [7, 64])
def test_a_stream_has_the_rows_of_the_texts_at_every_pass(tokenizer, two_documents, packing, length):
    documents = as_dataset(*two_documents, "", two_documents[0])
    with pytest.warns(UserWarning, match="have no token"):
        wanted = tokenize(documents, "text", tokenizer, length, packing)
    stream = tokenize_stream(documents.to_iterable_dataset(), "text", tokenizer, length, packing)
    with pytest.warns(UserWarning, match="have no token"):
        passes = [list(stream), list(stream)]
    for rows in passes:
        assert [{name: values.tolist() for name, values in row.items()} for row in rows] == wanted.to_list()


def test_a_stream_refuses_what_rows_of_texts_refuse_before_a_text_is_read(tokenizer, tmp_path):
    documents = as_dataset("a text").to_iterable_dataset()
    for wrong in ({"length": 0}, {"packing": "loose"}, {"ending": "loud"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tokenize_stream(documents, "text", tokenizer, **wrong)
    with pytest.raises(TypeError, match="choose a split"):
        tokenize_stream({"train": documents}, "text", tokenizer)
    with pytest.raises(FileNotFoundError, match="no file"):
        stream_text(tmp_path / "none.txt", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no column 'body'"):
        next(iter(tokenize_stream(documents, "body", tokenizer)))


def test_packing_a_whole_number_of_rows_adds_no_empty_one():
    tokenizer = character_tokenizer(alphabet="27")
    assert tokenize(as_dataset("abc", "de"), "text", tokenizer, 3)["tokens"] == [[1, 2, 3], [0, 4, 5]]


def test_letters_pack_into_one_text(tokenizers):
    rows = tokenize(as_dataset("One.", "Two!"), "text", tokenizers["27"], 100)
    assert tokenizers["27"].decode(rows[0]["tokens"]) == "one two"


def test_one_sentence_a_row(tokenizers, two_documents):
    rows = tokenize(as_dataset(*two_documents), "text", tokenizers["bpe"], 1000, "sentence")
    sentences = [
        "One is here.",
        "Is two?",
        "Yes!",
        "Mr. Fox had $3.50.",
        "Then \u2013 naïve 🦊 \u201cgone.\u201d",
        "The end",
    ]
    assert [tokenizers["bpe"].decode(row[:-1]) for row in rows["tokens"]] == sentences
    assert {row[-1] for row in rows["tokens"]} == {tokenizers["bpe"].eos_token_id}
    short = tokenize(as_dataset(*two_documents), "text", tokenizers["bpe"], 3, "sentence")
    assert short["tokens"] == [row[:3] for row in rows["tokens"]]
    assert all(all(row) for row in short["maskable"])
    assert [len(row) for row in short["maskable"]] == [len(row) for row in short["tokens"]]


def test_sentences_across_lines_and_around_initials(tokenizers):
    value = "It was\n  wrapped by J. Q. Adams. (So it was.) Then no. 5 came"
    rows = tokenize(as_dataset(value), "text", tokenizers["bpe"], 1000, "sentence")["tokens"]
    expected = ["It was wrapped by J. Q. Adams.", "(So it was.)", "Then no. 5 came"]
    assert [tokenizers["bpe"].decode(row[:-1]) for row in rows] == expected


def test_one_document_a_row_keeps_its_text(tokenizers, two_documents):
    rows = tokenize(as_dataset(*two_documents), "text", tokenizers["bpe"], 1000, "document")
    assert [tokenizers["bpe"].decode(row[:-1]) for row in rows["tokens"]] == two_documents


# --- endings: on the texts "abc" and "de", with end-of-text token 0 ---

E = 0


@pytest.mark.parametrize(
    ("ending", "tokens", "maskable"),
    [
        ("trained", [[1, 2, 3, E], [4, 5, E]], ["1111", "111"]),
        ("untrained", [[1, 2, 3, E], [4, 5, E]], ["1110", "110"]),
        ("eos_as_padding", [[1, 2, 3, E], [4, 5, E, E]], ["1111", "1111"]),
    ],
)
def test_endings_of_short_rows(ending, tokens, maskable):
    tokenizer = character_tokenizer(alphabet="27")
    rows = tokenize(as_dataset("abc", "de"), "text", tokenizer, 4, "document", ending)
    assert rows["tokens"] == tokens
    assert ["".join(str(int(flag)) for flag in row) for row in rows["maskable"]] == maskable
    # What the model is shown: padding up to the longest row is neither attended to nor masked.
    batch = RowStream(rows).rows(torch.arange(2))
    assert batch.attention.sum(1).tolist() == [len(row) for row in tokens]
    assert not (batch.maskable & ~batch.attention).any()
    assert batch.effective_length.tolist() == [row.count("1") for row in maskable]


@pytest.mark.parametrize(
    ("ending", "last", "maskable"),
    [
        ("trained", [4, 5], "111111"),
        ("untrained", [4, 5], "111011"),
        ("eos_as_padding", [4, 5, E, E], "11111111"),
    ],
)
def test_endings_of_packed_rows(ending, last, maskable):
    rows = tokenize(as_dataset("abc", "de"), "text", character_tokenizer(alphabet="27"), 4, "packed", ending)
    assert rows["tokens"] == [[1, 2, 3, E], last]
    assert "".join(str(int(flag)) for row in rows["maskable"] for flag in row) == maskable


def test_an_end_is_told_from_the_same_token_in_a_text():
    """In the 27 letters the end-of-text token is the space: only the one that ends the text is left unmasked."""
    tokenizer = character_tokenizer(alphabet="27")
    (row,) = tokenize(as_dataset("a b"), "text", tokenizer, 9, "document", "untrained")
    assert row == {"tokens": [1, 0, 2, 0], "maskable": [True, True, True, False]}


def test_a_text_that_was_cut_off_or_fills_its_row_has_no_end(tokenizers):
    for ending in ("trained", "eos_as_padding"):
        rows = tokenize(as_dataset("abcd", "abcde"), "text", tokenizers["27"], 4, "document", ending)
        assert rows["tokens"] == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("packing", ["packed", "sentence", "document"])
def test_empty_documents_are_dropped_and_counted(tokenizers, packing):
    documents = as_dataset("One.", "", " \n", None, "1790", "Two.")
    with pytest.warns(UserWarning, match="dropped 4 of 6 .* first document 1$"):
        rows = tokenize(documents, "text", tokenizers["27"], 100, packing)
    assert rows[:] == tokenize(as_dataset("One.", "Two."), "text", tokenizers["27"], 100, packing)[:]


def test_empty_lines_of_a_file_are_named(tokenizers, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": " "}\n{"text": "17"}\n')
    with pytest.warns(UserWarning, match=r"dropped 2 of 3 .* first document 1 \(.*a\.jsonl:3\)$"):
        load_text(path, "all", tokenizer=tokenizers["27"])


def test_many_documents_keep_their_order(tokenizers):
    documents = [f"Word {'x' * (i % 7)} {'y' * (i % 11)}." for i in range(600)]  # more than one batch
    rows = tokenize(as_dataset(*documents), "text", tokenizers["bpe"], 1000, "sentence")
    assert [tokenizers["bpe"].decode(row[:-1]) for row in rows["tokens"]] == [" ".join(d.split()) for d in documents]


def test_bad_rows_are_refused(tokenizers):
    tokenizer = tokenizers["27"]
    with pytest.raises(ValueError, match=r"no column 'body'; it has \['text'\]"):
        tokenize(as_dataset("a"), "body", tokenizer)
    with pytest.raises(ValueError, match="did you mean 'packed'"):
        tokenize(as_dataset("a"), "text", tokenizer, packing="pack")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tokenize(as_dataset("a"), "text", tokenizer, 0)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        tokenize(as_dataset("a"), "text", tokenizer, 1, ending="untrained")
    with pytest.raises(ValueError, match="did you mean 'untrained'"):
        tokenize(as_dataset("a"), "text", tokenizer, ending="untraind")
    with pytest.raises(ValueError, match="none of the 2 documents"):
        tokenize(as_dataset("", "17"), "text", tokenizer)
    with pytest.raises(TypeError, match="document 0 in column 'text' is int"):
        tokenize(datasets.Dataset.from_dict({"text": [3, 4]}), "text", tokenizer)
    with pytest.raises(TypeError, match="choose a split"):
        tokenize(datasets.DatasetDict(train=as_dataset("a")), "text", tokenizer)


def test_a_tokenizer_of_transformers_is_refused_before_anything_is_read(tokenizers, tmp_path):
    ours = tokenizers["bpe"]
    special = {"eos_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=ours.tokenizer, **special)
    stream = datasets.IterableDataset.from_generator(lambda: pytest.fail("a document was read"))
    message = r"expected a TextTokenizer, got \w+: .* TextTokenizer\.from_hugging_face\(tokenizer\)"
    with pytest.raises(TypeError, match=message):
        tokenize(stream, "text", theirs, cache=tmp_path, version="1")
    with pytest.raises(TypeError, match=message):
        load_text(tmp_path / "none.txt", tokenizer=theirs)
    for corpus in (LM1B, GSM8K):
        with pytest.raises(TypeError, match=message):
            corpus.load(tokenizer=theirs, length=9, source=tmp_path / "none.txt", cache=tmp_path)
    rows = tokenize(as_dataset("abc"), "text", TextTokenizer.from_hugging_face(theirs))
    assert rows[:] == tokenize(as_dataset("abc"), "text", ours)[:]


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


@pytest.mark.parametrize("ending", ["trained", "untrained"])
def test_documents_kept_apart_are_whole_in_their_rows_and_numbered(ending, tmp_path):
    texts = ["abc", "de", "fghijklmnop", "q", "rs"]
    tokenizer = character_tokenizer(texts)
    data = datasets.Dataset.from_dict({"text": texts})
    rows = tokenize(data, "text", tokenizer, length=8, packing="apart", ending=ending)
    cached = tokenize(data, "text", tokenizer, length=8, packing="apart", ending=ending, cache=tmp_path)
    assert rows.to_list() == cached.to_list()
    found = []
    for row in rows:
        assert len(row["tokens"]) == len(row["maskable"]) == len(row["document"]) <= 8
        for number in sorted(set(row["document"])):
            found.append([t for t, d in zip(row["tokens"], row["document"], strict=True) if d == number])
    eos = tokenizer.eos_token_id
    flags = [flag for row in rows for flag, token in zip(row["maskable"], row["tokens"], strict=True) if token == eos]
    assert flags == [ending == "trained"] * len(texts)
    assert "".join(tokenizer.decode([t for t in piece if t != eos]) for piece in found) == "".join(texts)
    assert [len(row["tokens"]) for row in rows] == [7, 8, 4 + 2, 3]
    with pytest.raises(ValueError, match="packing 'apart' has no padding to learn"):
        tokenize(data, "text", tokenizer, length=8, packing="apart", ending="eos_as_padding")

import importlib.util
import json
import lzma
import re
from pathlib import Path

import datasets
import pytest

from unmask.data import documents
from unmask.data.documents import TEXTS, load_documents, source_hash, split_of, stream_documents

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sotu.py"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def addresses():
    return {split: load_documents("sotu", split) for split in (*SPLITS, "all")}


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
    files = Path(documents.__file__).parent / "files"
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


@pytest.mark.parametrize("ending", TEXTS)
def test_a_folder_holds_the_texts_that_can_be_named_alone(ending, tmp_path):
    (tmp_path / f"a{ending}").write_text("one")
    (tmp_path / f"B{ending.upper()}").write_text("two")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert sorted(load_documents(tmp_path, "all")["text"]) == ["one", "two"]
    assert load_documents(tmp_path / f"a{ending}", "all")["text"] == ["one"]


@pytest.mark.parametrize("name", ["nope.csv", "texts/nope", "nope.txt"])
def test_a_path_that_is_not_there_is_no_misspelt_text_of_ours(name):
    with pytest.raises(FileNotFoundError, match=f"there is no file '{name}'$"):
        load_documents(name)


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


# --- JSON lines, folders and streams ---


def lines_file(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_json_lines_of_either_name_are_no_prose(tmp_path):
    """As prose the braces and names of an .ndjson file were trained on, and it was one document."""
    found = []
    for name in ("a.jsonl", "a.ndjson"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
        found.append(load_documents(tmp_path / name, "all")["text"])
    assert found[0][:] == found[1][:] == ["one", "two"]


def test_json_lines_keep_columns_file_and_line(tmp_path):
    path = lines_file(
        tmp_path / "a.jsonl", '\ufeff{"text": "a\\n", "n": 1}', "", '{"n": 2, "text": null, "more": 0}\r'
    )
    rows = load_documents(path, "all", ("text", "n"))
    assert rows[:] == {"file": [str(path)] * 2, "line": [1, 3], "text": ["a\n", None], "n": [1, 2]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "a.jsonl:3 is not JSON: .* at column"),
        ("text", "a.jsonl:3 is not JSON"),
        ('["a"]', "a.jsonl:3 is a JSON list, not an object"),
        ('{"body": "a"}', r"a.jsonl:3 has no column 'text'; it has \['body'\]"),
        ('{"text": 3}', "a.jsonl:3: column 'text' is int, str in the lines before"),
        (b'{"text": "caf\xe9"}', "a.jsonl:3 is not UTF-8: byte 13"),
        (r'{"text": "\ud800"}', "a.jsonl:3 holds '.*ud800', half a character"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = lines_file(tmp_path / "a.jsonl", '{"text": "a"}', "", line, '{"text": "b"}')
    for load in (load_documents, lambda *options: list(stream_documents(*options))):
        with pytest.raises(ValueError, match=message):
            load(path, "all")


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    path = lines_file(tmp_path / "a.jsonl", r'{"text": "\ud83e\udd8a"}')
    assert load_documents(path, "all")["text"] == ["🦊"]


def test_the_first_column_decides_the_split(tmp_path):
    lines = [json.dumps({"question": f"{i % 30}?", "answer": str(i)}) for i in range(60)]
    path = lines_file(tmp_path / "a.jsonl", *lines)
    found = {split: load_documents(path, split, ["question", "answer"]) for split in SPLITS}
    questions = [set(found[split]["question"]) for split in SPLITS]
    assert sum(map(len, questions)) == len(set().union(*questions)) == 30
    assert sum(map(len, found.values())) == 60
    by_answer = load_documents(path, "train", ["answer", "question"])
    assert set(by_answer["question"]) - questions[0]


def test_folders_and_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "below/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    lines_file(tmp_path / "d.jsonl", '{"text": "d1"}', '{"text": "d2"}')
    (tmp_path / "notes.html").write_text("not read")
    for name in (".ipynb_checkpoints/a.txt", "._a.txt"):  # as editors and file systems leave them
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff")
    assert load_documents(tmp_path, "all")["text"] == ["a.txt", "b.txt", "below/c.txt", "d1", "d2"]
    assert load_documents(tmp_path / "*.txt", "all")["text"] == ["a.txt", "b.txt"]
    assert load_documents(str(tmp_path / "**/*.txt"), "all")["text"] == ["a.txt", "b.txt", "below/c.txt"]
    assert load_documents([tmp_path / "below", tmp_path / "a.txt"], "all")["text"] == ["below/c.txt", "a.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no \.txt or \.md or \.jsonl"):
        load_documents(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_documents(tmp_path / "*.rst")
    with pytest.raises(ValueError, match="gives the column 'text' alone"):
        load_documents(tmp_path / "a.txt", "all", "body")
    lines_file(tmp_path / "e.txt", " ")
    with pytest.raises(ValueError, match=r"no text in .*e\.txt: all is blank"):
        load_documents(tmp_path / "e.txt")
    with pytest.raises(ValueError, match=r"no text in .*f\.jsonl: it is empty"):
        load_documents(lines_file(tmp_path / "f.jsonl", ""), "all")


TABLE = {"question": ["what, is", "b"], "answer": ["007", "NA"], "n": [1, 2]}


@pytest.fixture(params=["a.csv", "a.TSV", "a.json", "a.parquet", "folder"])
def table(request, tmp_path):
    """The same table in each of the forms."""
    path, rows = tmp_path / request.param, datasets.Dataset.from_dict(TABLE)
    write = {"a.csv": rows.to_csv, "a.json": rows.to_json, "a.parquet": rows.to_parquet, "folder": rows.save_to_disk}
    if request.param == "a.TSV":
        rows.to_csv(path, sep="\t")
    elif request.param == "a.json":
        rows.to_json(path, lines=False)
    else:
        write[request.param](str(path))
    return path


def test_a_row_of_a_table_is_a_document(table):
    found = load_documents(table, "all", ("question", "answer"))
    assert found[:] == {"file": [str(table)] * 2, "question": TABLE["question"], "answer": TABLE["answer"]}
    assert source_hash(table) == source_hash(str(table))
    with pytest.raises(ValueError, match=r"has no column 'reply'; it has \['question', 'answer', 'n'\]"):
        load_documents(table, "all", ("question", "reply"))


@pytest.mark.parametrize(("name", "text"), [("a.csv", "a,b\n1,2\n1,2,3\n"), ("a.json", "{"), ("a.parquet", "PAR")])
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"cannot read .*{re.escape(name)}: "):
        load_documents(tmp_path / name, "all", "a")
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is empty"):
        load_documents(tmp_path / name, "all", "a")


def test_endings_of_names_count_in_any_case_and_others_are_prose(tmp_path):
    lines_file(tmp_path / "a.JSONL", '{"text": "a"}')
    lines_file(tmp_path / "b.rst", "# b")
    lines_file(tmp_path / "c.TXT", "c")
    assert load_documents(tmp_path, "all")["text"] == ["a", "c"]
    assert load_documents(tmp_path / "b.rst", "all")["text"] == ["# b"]
    assert source_hash(tmp_path / "a.JSONL") == source_hash(lines_file(tmp_path / "d.jsonl", '{"text": "a"}'))


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_streams_give_the_same_documents(tmp_path, split):
    path = lines_file(tmp_path / "a.jsonl", *(json.dumps({"text": f"Document {i}."}) for i in range(60)))
    assert list(stream_documents(path, split)) == list(load_documents(path, split))
    with pytest.raises(FileNotFoundError):
        stream_documents(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="did you mean"):
        stream_documents(path, "trian")


def test_source_hash_is_of_content_and_order(tmp_path):
    a, b = lines_file(tmp_path / "a.txt", "a"), lines_file(tmp_path / "b.txt", "b")
    same = lines_file(tmp_path / "c.txt", "a")
    assert source_hash(a) == source_hash([same]) != source_hash(b)
    assert source_hash([a, b]) != source_hash([b, a])
    assert source_hash(a) != source_hash(lines_file(tmp_path / "a.jsonl", "a"))
    assert len({source_hash("sotu"), source_hash(a), source_hash(tmp_path)}) == 3


def test_sources_that_give_other_documents_have_other_hashes(tmp_path):
    """The ending of a file says how it is read: of the same bytes some are one text, some a table."""
    content = "text\nGood morning.\nGood\tnight.\n"
    found = {}
    for ending in (".txt", ".md", ".csv", ".tsv", ".CSV"):
        file = tmp_path / f"a{ending}"
        file.write_text(content)
        try:
            read = json.dumps(list(load_documents(file, "all")["text"]))
        except ValueError:
            read = "refused"
        found.setdefault(source_hash(file), set()).add(read)
    assert len(found) == 3
    assert all(len(read) == 1 for read in found.values())


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

import importlib.util
import json
import lzma
from pathlib import Path

import pytest

from unmask.data import documents
from unmask.data.documents import load_documents, split_of

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

"""Files that are not what their recipe reads: each is refused by name, with what to do."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset

from unmask.data.sequences import read_sequences
from unmask.data.supervised import template_columns
from unmask.data.tables import read_table
from unmask.models import pretrained
from unmask.parts.prompts import PromptData
from unmask.parts.rows import RowsOnDisk
from unmask.parts.sequences import SequenceData
from unmask.parts.text import TextData


def test_fastq_is_no_list_of_sequences(tmp_path):
    file = tmp_path / "reads.fq"
    file.write_text("@read1\nACGTACGT\n+\nIIIIIIII\n")
    with pytest.raises(ValueError, match=r"reads\.fq is FASTQ.*write it as FASTA"):
        list(read_sequences(file))


@pytest.mark.parametrize("blank", ["", "\n \n"])
def test_what_a_file_begins_with_is_its_first_line_that_is_not_blank(tmp_path, blank):
    (tmp_path / "reads.txt").write_text(f"{blank}@read1\nACGTACGT\n+\nIIIIIIII\n")
    with pytest.raises(ValueError, match=r"reads\.txt is FASTQ"):
        list(read_sequences(tmp_path / "reads.txt"))
    (tmp_path / "a.smi").write_text(f"{blank}SMILES name\nCCO ethanol\n")
    assert list(read_sequences(tmp_path / "a.smi")) == ["CCO"]


WHOLE = gzip.compress("".join(f">{i}\n{i:b}\n" for i in range(2000)).encode())


@pytest.mark.parametrize(
    "data",
    [WHOLE[:-9], WHOLE[: len(WHOLE) // 2], WHOLE[:12], WHOLE[:30] + b"\xff\xff\xff" + WHOLE[33:], b">a\nACGT\n"],
)
def test_a_packed_file_that_is_cut_short_or_damaged_is_named(tmp_path, data):
    (tmp_path / "p.fasta.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"p\.fasta\.gz cannot be unpacked"):
        list(read_sequences(tmp_path / "p.fasta.gz"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"question;answer\na;b\n", "one column 'question;answer': part columns by commas"),
        ("question,answer\nwo?,dort \u00fcben\n".encode("latin-1"), "is not UTF-8.*convert the file"),
    ],
)
def test_tables_of_another_kind_are_told_from_tables(tmp_path, data, message):
    file = tmp_path / "qa.csv"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_table(file, ["question"]))


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("more", [["b"], ["b", "c"], [""]])
def test_a_table_whose_rows_have_more_fields_than_its_header_is_refused(tmp_path, ending, more):
    """An answer with a comma that is not in quotes: pandas took the first field for the row's name."""
    file = tmp_path / f"qa{ending}"
    file.write_text(
        "".join({".csv": ",", ".tsv": "\t"}[ending].join(row) + "\n" for row in (["q", "a"], ["a", "b", *more]))
    )
    with pytest.raises(ValueError, match=r"qa\.[ct]sv.*more fields than .* names"):
        list(read_table(file, ["q"]))


@pytest.mark.parametrize(("ending", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_a_column_that_is_named_twice_is_refused(tmp_path, ending, comma):
    path = tmp_path / f"qa{ending}"
    path.write_text("\n".join(comma.join(row) for row in (("question", "answer", "answer"), ("a", "b", "c"))))
    with pytest.raises(ValueError, match="names 'answer' more than once in its first line"):
        list(read_table(path))
    path.write_text("\n".join(comma.join(row) for row in (("", "question", "", "answer"), ("0", "a", "1", "b"))))
    assert [row["answer"] for row in read_table(path)] == ["b"]  # columns without a name are as many as there are


def test_a_table_of_one_column_is_one(tmp_path):
    (tmp_path / "one.csv").write_text("text\nhello\n")
    assert list(read_table(tmp_path / "one.csv")) == [{"text": "hello"}]


def test_cells_that_hold_several_values_are_no_text(tmp_path):
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(json.dumps({"q": [f"q {i}"], "a": "yes"}) + "\n" for i in range(60)))
    with pytest.raises(ValueError, match=r"column 'q' holds lists, not text: \['q "):
        PromptData(str(file), prompt="q", response="a").load()


PARTS = {
    "text": lambda path: TextData(path, column="a"),
    "sft": lambda path: PromptData(path, prompt="q", response="a"),
    "sequences": lambda path: SequenceData(path, column="a"),
}


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize("name", ["t.csv.gz", "t.TSV.GZ", "t.jsonl.gz", "t.ndjson.bz2", "t.json.zst", "t.parquet.xz"])
def test_a_packed_table_is_no_text_and_no_list_of_sequences(tmp_path, name, part):
    """Its lines were taken for sequences, commas and header included."""
    (tmp_path / name).write_bytes(gzip.compress(b"q,a\n" + b"".join(b"%d,A\n" % i for i in range(99))))
    with pytest.raises(ValueError, match=rf"{name} is a packed table: unpack it first"):
        PARTS[part](str(tmp_path / name)).fitted().load()


@pytest.mark.parametrize("part", sorted(PARTS))
def test_bytes_are_no_text(tmp_path, part):
    """Their Python spelling, b'...', was learnt."""
    file = str(tmp_path / "t.parquet")
    Dataset.from_dict({"q": [f"q {i}" for i in range(60)], "a": [b"ACDE"] * 60}).to_parquet(file)
    with pytest.raises(ValueError, match=r"column 'a' of .*t\.parquet holds bytes, not text: b'ACDE'; write"):
        PARTS[part](file).fitted().load()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_not_a_number_is_an_empty_cell_and_no_answer(tmp_path, form):
    answers = [float("nan") if i % 2 else float(i) for i in range(120)]
    rows = Dataset.from_dict({"q": [f"q {i}" for i in range(120)], "a": answers})
    if form == "jsonl":
        lines = (json.dumps({"q": q, "a": a}) + "\n" for q, a in zip(rows["q"], answers, strict=True))
        (tmp_path / "t.jsonl").write_text("".join(lines))
    else:
        rows.to_parquet(str(tmp_path / "t.parquet"))
    data = PromptData(str(tmp_path / f"t.{form}"), prompt="q", response="a", vocabulary="characters", length=32)
    with pytest.warns(UserWarning, match=r"rows that have no reply"):
        learnt = [data.tokenizer().decode(row) for row in data.load()["tokens"]]
    assert len(learnt) > 0
    assert not any("nan" in row for row in learnt)


@pytest.mark.parametrize("cell", [7, 0, 1.5, True, ["ACDE"]])
def test_a_sequence_is_text(tmp_path, cell):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"a": cell}) + "\n" for _ in range(60)))
    with pytest.raises(ValueError, match=r"column 'a' of .*which is no sequence of letters.*--data\.column"):
        SequenceData(str(file), column="a").fitted()


def test_a_brace_that_is_not_closed_is_named():
    with pytest.raises(ValueError, match=r"'Q {question' is no template.*other braces are doubled"):
        template_columns("Q {question")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": [1.5, 2.0], "maskable": [True, True]}, r"tokens are a list of whole numbers, got \[1\.5"),
        ({"tokens": ["a", "b"], "maskable": [True, True]}, r"tokens are a list of whole numbers, got \['a'"),
        ({"tokens": "ab", "maskable": [True, True]}, "tokens are a list of whole numbers, got ab"),
        ({"tokens": [1, 2], "maskable": ["no", "yes"]}, "maskable is a list of true and false"),
    ],
)
def test_rows_of_other_types_are_refused(tmp_path, row, message, stream):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(5)))
    with pytest.raises(ValueError, match=message):
        RowsOnDisk(str(file), divided=True, stream=stream).load()


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "../model", "~/model"])
def test_a_folder_that_is_not_there_is_no_model_of_the_hub(name):
    with pytest.raises(ValueError, match=r"there is no folder .*a model of the hub has a name such as org/model"):
        pretrained.from_pretrained(name)


def test_a_lone_quotation_mark_in_text_parted_by_tabs_does_not_join_rows(tmp_path):
    """Two inches are written 2": all between two such marks was one cell, and its rows were trained on as one."""
    path = tmp_path / "rows.tsv"
    path.write_text('size\ttext\n"2 inches\ta\nfive\tb\n3 inches"\tc\nsix\td\n')
    with pytest.raises(ValueError, match=r"rows\.tsv: a cell of 'size' holds both tabs and line breaks.*or \.jsonl"):
        list(read_table(path))
    path.write_text('size\ttext\n"two ""inches"""\t"a\nb"\n')
    assert list(read_table(path)) == [{"size": 'two "inches"', "text": "a\nb"}]

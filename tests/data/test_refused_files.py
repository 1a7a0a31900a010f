"""Files that are not what their recipe reads: each is refused by name, with what to do."""

from __future__ import annotations

import json

import pytest

from unmask.data.sequences import read_sequences
from unmask.data.supervised import template_columns
from unmask.data.tables import read_table
from unmask.models import pretrained
from unmask.parts.prompts import PromptData
from unmask.parts.rows import RowsOnDisk


def test_fastq_is_no_list_of_sequences(tmp_path):
    file = tmp_path / "reads.fq"
    file.write_text("@read1\nACGTACGT\n+\nIIIIIIII\n")
    with pytest.raises(ValueError, match=r"reads\.fq is FASTQ.*write it as FASTA"):
        list(read_sequences(file))


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


def test_a_table_of_one_column_is_one(tmp_path):
    (tmp_path / "one.csv").write_text("text\nhello\n")
    assert list(read_table(tmp_path / "one.csv")) == [{"text": "hello"}]


def test_cells_that_hold_several_values_are_no_text(tmp_path):
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(json.dumps({"q": [f"q {i}"], "a": "yes"}) + "\n" for i in range(60)))
    with pytest.raises(ValueError, match=r"column 'q' holds lists, not text: \['q "):
        PromptData(str(file), prompt="q", response="a").load()


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

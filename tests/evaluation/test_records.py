"""Records: what changes a hash, and what keeps two numbers apart."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask.config import to_json
from unmask.evaluation.hashes import data_hash, weights_hash
from unmask.evaluation.likelihood import LikelihoodConfig
from unmask.evaluation.records import (
    Protocol,
    Record,
    load_records,
    mismatches,
    save_records,
)
from unmask.report.tables import records_grid

ROWS = {"tokens": [[1, 2, 3], [4], [5, 6]], "maskable": [[False, True, True], [True], [True, False]]}
PROTOCOL = Protocol(to_json(LikelihoodConfig()), "d", None, "c", "0")
RECORD = Record("bits per token", "standard", 1.25, 1.0, 1.5, 10, PROTOCOL)


def rows_of(**changes) -> Dataset:
    return Dataset.from_dict(ROWS | changes)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5))
def test_data_hash_does_not_depend_on_the_chunk(chunk):
    assert data_hash(rows_of(), chunk) == data_hash(rows_of())


def test_data_hash_sees_tokens_flags_order_and_bounds_of_rows_alone():
    base = data_hash(rows_of())
    narrow = Features({"tokens": List(Value("int16")), "maskable": List(Value("bool"))})
    assert data_hash(rows_of().cast(narrow)) == base
    assert data_hash(rows_of(note=["a", "b", "c"])) == base
    others = [
        rows_of(tokens=[[1, 2, 3], [4], [5, 7]]),
        rows_of(maskable=[[True, True, True], [True], [True, False]]),
        rows_of().select([1, 0, 2]),
        rows_of().select([0, 1]),
        Dataset.from_dict(
            {"tokens": [[1, 2], [3, 4], [5, 6]], "maskable": [[False, True], [True] * 2, [True, False]]}
        ),
    ]
    assert len({base, *map(data_hash, others)}) == len(others) + 1


def test_weights_hash_sees_every_bit():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    base = weights_hash(model)
    assert weights_hash(model) == base
    half = weights_hash(nn.Linear(3, 2).to(torch.bfloat16))
    assert half != base
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert weights_hash(model) != base


def test_records_survive_the_disk(tmp_path):
    save_records(tmp_path / "evaluation" / "likelihood.json", [RECORD, RECORD])
    assert load_records(tmp_path / "evaluation" / "likelihood.json") == [RECORD, RECORD]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other", "records": []}'])
def test_what_holds_no_records_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="holds no records"):
        load_records(tmp_path / "a.json")
    with pytest.raises(ValueError, match="holds no records"):
        load_records(tmp_path / "missing.json")


def test_a_record_without_its_interval_cannot_be_made():
    with pytest.raises(ValueError, match="no record"):
        replace(RECORD, low=float("nan"))
    with pytest.raises(ValueError, match="no record"):
        replace(RECORD, high=1.1)


def test_only_the_checkpoint_may_differ():
    other = replace(RECORD, model="puma", protocol=replace(PROTOCOL, checkpoint="other"))
    assert mismatches([RECORD, other]) == []
    assert "one protocol" in records_grid([RECORD, other]).note


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "e"}, "data: d -> e"),
        ({"tokenizer": "t"}, "tokenizer: None -> t"),
        ({"version": "1"}, "version: 0 -> 1"),
        ({"settings": to_json(LikelihoodConfig(samples=9))}, "settings.samples: 8 -> 9"),
    ],
)
def test_any_other_difference_stands_under_the_table(change, named):
    other = replace(RECORD, model="puma", protocol=replace(PROTOCOL, **change))
    table = records_grid([RECORD, other])
    assert named in table.note
    assert table.note.startswith("DO NOT COMPARE")


def test_a_table_shows_each_number_once():
    with pytest.raises(ValueError, match="same name"):
        records_grid([RECORD, RECORD])
    with pytest.raises(ValueError, match="no record"):
        records_grid([])


def test_settings_are_the_config_itself(tmp_path):
    """What is saved rebuilds the config that measured it."""
    from unmask.config import from_json

    save_records(tmp_path / "r.json", [RECORD])
    saved = json.loads((tmp_path / "r.json").read_text())["records"][0]["protocol"]["settings"]
    assert from_json(saved) == LikelihoodConfig()

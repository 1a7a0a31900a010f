"""metrics.jsonl: what is written reads back, and a crash costs a line at most."""

from __future__ import annotations

import pytest

from unmask.store.metrics import MetricsLog
from unmask.training import read_metrics


def _log(folder, steps=(1, 2, 3)):
    log = MetricsLog(folder)
    for step in steps:
        log.write("train", step, loss=step / 3)
    log.write("evaluation", steps[-1], strata={"25-28": {"solved": 0.5}}, interval=(0.1, 0.9))
    return log


def test_lines_read_back_in_order_and_by_kind(tmp_path):
    _log(tmp_path)
    assert read_metrics(tmp_path, "train") == [{"kind": "train", "step": s, "loss": s / 3} for s in (1, 2, 3)]
    (line,) = read_metrics(str(tmp_path), "evaluation")
    assert line["strata"] == {"25-28": {"solved": 0.5}}
    assert line["interval"] == [0.1, 0.9]
    assert len(read_metrics(tmp_path)) == 4


def test_fresh_log_starts_empty(tmp_path):
    _log(tmp_path)
    MetricsLog(tmp_path)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(("after", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3, 3]), (9, [1, 2, 3, 3])])
def test_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path, after, kept):
    _log(tmp_path)
    MetricsLog(tmp_path, after=after)
    assert [line["step"] for line in read_metrics(tmp_path)] == kept


def test_last_line_cut_short_is_left_out_and_does_not_hurt_later_ones(tmp_path):
    path = _log(tmp_path).path
    path.write_text(path.read_text()[:-10])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    MetricsLog(tmp_path, after=3).write("train", 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_broken_line_in_the_middle_is_named(tmp_path):
    path = _log(tmp_path).path
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{half", *lines[2:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of JSON"):
        read_metrics(tmp_path)


def test_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        read_metrics(tmp_path)


def test_full_disk_keeps_the_log_as_it_was(tmp_path, full_disk):
    path = _log(tmp_path, range(1, 50)).path
    before = path.read_text()
    with full_disk(200), pytest.raises(OSError, match="File too large"):
        MetricsLog(tmp_path, after=40)
    assert path.read_text() == before
    log = MetricsLog(tmp_path, after=40)
    size = path.stat().st_size
    with full_disk(size), pytest.raises(OSError, match=f"could not write {path}: File too large.*--resume"):
        log.write("train", 41)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 41))

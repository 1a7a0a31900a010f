"""Whatever is wrong with an input, the error is one of ours that says what to do: 2,000 inputs."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask import (
    PPOTS,
    Bell,
    Blockwise,
    ExactCount,
    IndependentMasking,
    ProgressiveUnmasking,
    RowStream,
    TrainingConfig,
)
from unmask.cli import main
from unmask.config import from_json, to_json
from unmask.data.checks import check_rows
from unmask.data.streamed import StreamedRows
from unmask.store import checkpoint
from unmask.store.checkpoint import CheckpointError

pytestmark = pytest.mark.slow

CONFIGS = [
    TrainingConfig(),
    IndependentMasking(Bell(), ExactCount(), "stratified"),
    ProgressiveUnmasking(stages=4),
    Blockwise(IndependentMasking(Bell()), size=4),
    IndependentMasking(PPOTS()),
]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.just({"type": "NoSuchType"}), st.just({"type": 3}), st.just([1, "a", None]), st.just({"type": "Bell"}),
)  # fmt: skip


def _inputs(number: int):
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def _places(value, path=()):
    """Every place in nested JSON."""
    yield path
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _places(item, (*path, key))


def _damaged(draw, value):
    """A few places of nested JSON gone, renamed or with something else in them."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in _places(value) if path]
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        holder = value
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "remove", "rename"])) if isinstance(holder, dict) else "replace"
        if kind == "replace":
            holder[last] = copy.deepcopy(draw(LEAVES))
        elif kind == "remove":
            del holder[last]
        else:
            holder[draw(st.text(max_size=5))] = holder.pop(last)
    return value


def _is_told(error: BaseException) -> None:
    """A sentence, not the bare key of a KeyError or the name of something inside."""
    assert type(error).__name__ not in ("KeyError", "IndexError", "AttributeError", "UnicodeDecodeError")
    assert len(str(error).split()) >= 3


@_inputs(700)
@given(st.data())
def test_configs(data):
    saved = _damaged(data.draw, to_json(data.draw(st.sampled_from(CONFIGS))))
    try:
        from_json(saved)
    except ValueError as error:
        _is_told(error)


@_inputs(300)
@given(st.data(), st.booleans())
def test_states_of_streams(data, streamed):
    rows = Dataset.from_dict({"tokens": [[1, 2]] * 9, "maskable": [[True, True]] * 9})

    def stream():
        return StreamedRows(rows.to_iterable_dataset(), block=4) if streamed else RowStream(rows)

    begun = stream()
    begun.take(6)
    state = _damaged(data.draw, begun.state_dict())
    try:
        again = stream()
        again.load_state_dict(state)
        again.take(2)
    except ValueError as error:
        _is_told(error)


CELLS = st.lists(st.one_of(st.integers(-2, 12), st.booleans()), max_size=4)


@_inputs(400)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=4), st.booleans(), st.sampled_from(["", "tokens", "maskable"]))
def test_rows(rows, shifted, odd):
    columns = {
        "tokens": [list(map(int, tokens)) for tokens, _ in rows],
        "maskable": [list(map(bool, m)) for _, m in rows],
    }
    if odd:
        columns[odd] = ["text"] * len(rows)
    dataset = Dataset.from_dict(columns)
    try:
        check_rows(dataset, 9, 10, shifted)
        RowStream(dataset).take(3)
    except ValueError as error:
        _is_told(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    def fill(folder):
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text('{"a": 1}')
        checkpoint.save_state(folder / "rank-0", {"step": 3, "pool": {"tokens": torch.arange(9)}})

    return checkpoint.write(tmp_path_factory.mktemp("run") / "checkpoints", 5, "1", [fill], keep=1)


@_inputs(500)
@given(st.data())
def test_checkpoints(whole, data):
    """Bits flipped, files cut off, gone, made longer, or turned into folders."""
    folder = whole.parents[1] / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    file = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "gone", "longer", "folder"]))
    if kind == "flip":
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "longer":
        content += data.draw(st.binary(min_size=1, max_size=9))
    file.write_bytes(content)
    if kind in ("gone", "folder"):
        file.unlink()
    if kind == "folder":
        file.mkdir()
    try:
        checkpoint.check(folder)
    except CheckpointError as error:
        _is_told(error)
    else:  # white space behind the manifest's text means nothing
        assert kind == "longer"
        assert not content[len((whole / file.relative_to(folder)).read_bytes()) :].strip()


WORDS = [
    *("train", "sudoku", "sotu", "evaluate", "sample", "variance", "report", "study", "advise"),
    *("--masking", "puma", "Bell(", "IndependentMasking(time=3)", "--masking.time", "--what", "likelihood"),
    *("--out", "--steps", "0", "-1", "1e99", "nan", "--seed", "--prompt", "\x00", "ü", "", "--", "-h", "x=y"),
    *("--resume", "/", "[]"),
]


@_inputs(100)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
def test_command_lines(tmp_path, monkeypatch, capsys, words):
    """Each ends by itself in a line, or in help; what would train or study is told steps that cannot be."""
    monkeypatch.chdir(tmp_path)
    ending = [] if words[0] in ("report", "sample", "variance", "evaluate") else ["--steps", "-1"]
    code = 0
    try:
        main([*words, *ending])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert len((said.err + said.out).split()) >= 3
    assert "Traceback" not in said.err + said.out

"""The examples run, and learn."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("masking", ["bell", "ppots", "puma"])
def test_plain_loop_learns(masking, capsys):
    losses = example("plain_loop").main(masking, steps=30, batch_size=16)
    assert losses[0] == pytest.approx(math.log(27), abs=0.5)
    assert sum(losses[-5:]) / 5 < 3.05
    assert capsys.readouterr().out.count("loss") == 3


def test_hf_trainer_goes_on_where_it_stopped(tmp_path, capsys):
    losses = example("hf_trainer").main(steps=10, out=tmp_path)
    assert len(losses) == 10
    assert sum(losses[-3:]) < sum(losses[:3])
    assert "nats per masked cell" in capsys.readouterr().out
    assert (tmp_path / "checkpoint-10" / "masking-0.safetensors").is_file()

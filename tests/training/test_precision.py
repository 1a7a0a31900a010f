"""Which numbers a run computes in: what its settings say, on every machine, and its record says the same."""

from __future__ import annotations

import pytest

from unmask.training import read_metrics


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER"),
    ],
)
def test_no_setting_of_accelerate_changes_a_run(trainer, state_of, monkeypatch, name, value):
    """`accelerate config` leaves these in the environment of every process that `accelerate launch` starts."""
    expected = state_of(trainer("plain", steps=2).train())
    monkeypatch.setenv(name, value)
    run = trainer("under accelerate", steps=2)
    assert state_of(run.train()) == expected
    assert run.wrapped is run.model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_record_says_what_ran(trainer, stop_at, precision):
    settings = {"precision": precision, "steps": 4, "checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(3), **settings).train()
    run = trainer(**settings)
    run.train(resume=True)
    starts = read_metrics(run.out, "start")
    assert [line["step"] for line in starts] == [0, 2]
    for line in starts:
        assert (line["device"], line["precision"], line["ranks"]) == ("cpu", precision, 1)
        assert line["attention"] == run.model.config._attn_implementation
        assert line["compiled"] is False

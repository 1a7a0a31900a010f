"""Which numbers a run computes in: what its settings say, on every machine, and its record says the same."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import RowMean
from unmask.training import read_metrics
from unmask.training.loss_scale import LossScale
from unmask.training.platform import autocast_dtype, name_of


class TinyWeights(RowMean):
    """Weights of 1e-6 and less, as those of batches of a million tokens."""

    def normaliser(self, batch):
        return super().normaliser(batch) * 1e5


class Endless(RowMean):
    """A loss whose gradient does not fit fp16 at any loss scale."""

    def weights(self, batch):
        return super().weights(batch) * 1e9


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
    with pytest.warns(UserWarning, match=rf"{value} of accelerate's config is not used: the run's own"):
        run = trainer("under accelerate", steps=2)
    assert state_of(run.train()) == expected
    assert run.wrapped is run.model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_record_says_what_ran(trainer, stop_at, precision):
    settings = {"precision": precision, "steps": 4, "checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(3), **settings).train()
    run, dtypes = trainer(**settings), set()
    layer = run.model.backbone.get_submodule("h.0.mlp.c_fc")
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    run.train(resume=True)
    assert {name_of(None if dtype == torch.float32 else dtype) for dtype in dtypes} == {precision}
    starts = read_metrics(run.out, "start")
    assert [line["step"] for line in starts] == [0, 2]
    for line in starts:
        assert (line["device"], line["precision"], line["ranks"]) == ("cpu", precision, 1)
        assert line["attention"] == run.model.config._attn_implementation
        assert line["compiled"] is False


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_that_only_emulates_bf16_gets_fp16(monkeypatch, native, precision):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    found = autocast_dtype("auto", torch.device("cuda"))
    assert name_of(found) == precision


@given(overflows=st.lists(st.booleans(), max_size=40), start=st.integers(0, 20))
def test_loss_scale_halves_at_each_overflow_and_doubles_after_so_many_good_steps(overflows, start):
    scale, good, power = LossScale(2.0**start), 0, start
    scale.GROW_AFTER = 3
    for overflow in overflows:
        before = power
        skipped = scale.skips(math.nan if overflow else 1.0)
        assert skipped == (overflow and before > 0)
        power -= skipped
        good = 0 if skipped else good + (not overflow)
        if good == 3:
            power, good = power + 1, 0
        assert scale.value == 2.0**power
        again = LossScale()
        again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
        assert again == scale


def test_fp16_run_skips_overflows_and_resumes_bitwise(trainer, build, state_of, stop_at):
    """The scale starts so high that steps are skipped before the checkpoint and after it."""
    settings = {"precision": "fp16", "steps": 12, "checkpoint_every": 3, "evaluate_every": 1, "ema_decay": 0.9}
    whole = trainer("whole", evaluate=lambda model, last: {}, **settings)
    whole.loss_scale.value = 2.0**26
    expected = state_of(whole.train())
    lines = read_metrics(whole.out, "train")
    skipped = [line["step"] for line in lines if line["grad_norm"] is None]
    assert skipped == list(range(1, len(skipped) + 1))
    assert 4 < len(skipped) < 12
    assert lines[-1]["loss_scale"] == 2.0 ** (26 - len(skipped))
    cut = trainer("cut", evaluate=stop_at(5), **settings)
    cut.loss_scale.value = 2.0**26
    with pytest.raises(stop_at.error):
        cut.train()
    resumed = trainer("cut", **settings)
    assert state_of(resumed.train(resume=True)) == expected
    assert resumed.loss_scale == whole.loss_scale


def test_fp16_gradients_are_those_of_single_precision_at_any_loss_scale(trainer, build):
    """Rows whose weights are far below what fp16 can hold: the gradient's norm is that of fp32."""
    norms = {}
    for name, scale in (("fp32", None), ("fp16", 2.0**16), ("fp16", 2.0**8)):
        run = trainer(f"{name}-{scale}", model=build(std=0.2), precision=name, steps=1, objective=TinyWeights())
        if scale is not None:
            run.loss_scale.value = scale
        run.train()
        norms[scale] = read_metrics(run.out, "train")[0]["grad_norm"]
    assert norms[2.0**16] == pytest.approx(norms[None], rel=0.01)
    assert norms[2.0**8] == pytest.approx(norms[None], rel=0.05)


def test_gradient_that_overflows_at_every_scale_ends_the_run(trainer, build):
    run = trainer(precision="fp16", steps=3, objective=Endless())
    run.loss_scale.value = 2.0
    with pytest.raises(FloatingPointError, match="step 1: "):
        run.train()


def test_weights_in_fp16_are_not_trained(trainer, build):
    with pytest.raises(ValueError, match='dtype="float32"'):
        trainer(model=build().half(), precision="fp16")

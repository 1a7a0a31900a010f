"""What a checkpoint is written as: states read back, weights that transformers opens, and nothing that unpickles."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from unmask import MaskedDiffusionLM, ProgressiveUnmasking
from unmask.store import checkpoint

STATE = {
    "nothing": None,
    "numbers": {"int": 2**40, "float": 0.1, "flag": True, "text": "a/b"},
    "list": [1, 2],
    "tensors": {
        "int64": torch.tensor([2**40, -1]),
        "bool": torch.tensor([[True, False]]),
        "scalar": torch.tensor(3.5),
    },
    "wide": torch.tensor([0.1], dtype=torch.float64),
    "bf16": torch.tensor([0.1], dtype=torch.bfloat16),
    "empty": {"rows": torch.empty(0, 4), "dict": {}},
}


def _same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "state", [STATE, {}, {"step": 4}, {"t": torch.ones(2)}], ids=["all", "none", "json", "tensor"]
)
def test_saved_state_reads_back_as_it_was(tmp_path, state):
    checkpoint.save_state(tmp_path / "state", state)
    assert _same(checkpoint.load_state(tmp_path / "state"), state)


def test_state_with_shared_and_strided_tensors_reads_back(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    state = {"whole": base, "same": base, "part": base[:, 1], "turned": base.T}
    checkpoint.save_state(tmp_path / "state", state)
    assert _same(checkpoint.load_state(tmp_path / "state"), state)


def test_checkpoint_of_a_run_holds_only_safetensors_and_json(trainer, tmp_path):
    settings = {"masking": ProgressiveUnmasking(), "ema_decay": 0.9, "checkpoint_every": 2}
    last = trainer(**settings).train()
    for file in (p for p in last.rglob("*") if p.is_file()):
        assert file.suffix in (".json", ".safetensors")
        load_file(file) if file.suffix == ".safetensors" else json.loads(file.read_text())


def test_resuming_unpickles_nothing(trainer, stop_at):
    settings = {"masking": ProgressiveUnmasking(), "ema_decay": 0.9, "checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(stop_at.error):
        trainer(evaluate=stop_at(3), **settings).train()
    again = trainer(**settings)
    seen: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching and event.startswith("pickle.") else None)
    again.train(resume=True)
    watching.clear()
    assert seen == []


def test_weights_open_with_transformers_alone(trainer, weights_in):
    run = trainer(ema_decay=0.9)
    last = run.train()
    for which in ("model", "ema"):
        theirs = AutoModelForCausalLM.from_pretrained(last / which)
        saved = weights_in(last, which)
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in saved.items())
    loaded = MaskedDiffusionLM.from_pretrained(last / "model").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in run.model.state_dict().items())


def test_model_around_a_plain_backbone_saves_and_resumes(trainer, build, stop_at, state_of):
    """A model that was put together by hand has no Hugging Face folder to be saved in."""

    def model():
        made = build()
        return MaskedDiffusionLM(made.backbone, made.head, made.mask_token_id)

    settings = {"checkpoint_every": 2, "evaluate_every": 1, "ema_decay": 0.9}
    whole = trainer("whole", model=model(), **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", model=model(), evaluate=stop_at(3), **settings).train()
    assert state_of(trainer("cut", model=model(), **settings).train(resume=True)) == state_of(whole)

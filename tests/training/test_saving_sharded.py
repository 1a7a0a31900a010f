"""Weights that are spread over ranks (FSDP2) are saved without any rank but the first holding them whole."""

from __future__ import annotations

import json
import pickle
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, LlamaConfig

from unmask import IndependentMasking, MaskedDiffusionLM, RowStream, distributed
from unmask.data.sudoku import load_sudoku
from unmask.distributed import whole
from unmask.store import checkpoint
from unmask.training.ema import WeightAverage
from unmask.training.state import Counters, Parts, load_training, save_training

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=6,
    num_attention_heads=2,
    max_position_embeddings=162,
)


def _parts(rank: int = 0, ranks: int = 1, steps: int = 0, seed: int = 0) -> Parts:
    """A run after some steps with made-up gradients, the same whole model for any number of ranks."""
    torch.manual_seed(seed)
    model = MaskedDiffusionLM.from_config(CONFIG, 31)
    if ranks > 1:
        for layer in model.backbone.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(model, 0.9)
    rows = RowStream(load_sudoku("train", limit=40), 0, rank, ranks)
    process = IndependentMasking().start(rows, 4)
    for step in range(steps):
        process.draw()
        for parameter in model.parameters():
            parameter.grad = (parameter + step).detach()
        optimizer.step()
        average.update(step)
    return Parts(model, optimizer, process, average, rank=rank, ranks=ranks)


def _whole(parts: Parts) -> dict[str, torch.Tensor]:
    """Everything that changes, gathered; a collective."""
    found = {f"model {name}": tensor for name, tensor in parts.model.state_dict().items()}
    found |= {f"average {name}": tensor for name, tensor in parts.average.weights(parts.model).items()}
    for name, parameter in parts.model.named_parameters():
        found |= {f"{key} {name}": value for key, value in parts.optimizer.state[parameter].items()}
    return {name: whole(tensor) for name, tensor in found.items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _held(work, patience: float) -> int:
    """Bytes of what `work` gathered that were held at once on this rank.

    gloo's threads let go of a tensor a little later than they say that it is there: before the next is gathered,
    `patience` seconds are given to them.
    """
    seen: list[tuple[StorageWeakRef, int]] = []
    most = 0

    def gathered(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        until = time.monotonic() + patience
        while any(not storage.expired() for storage, _ in seen) and time.monotonic() < until:
            time.sleep(0.001)
        value = whole(tensor)
        seen[:] = [entry for entry in seen if not entry[0].expired()]
        seen.append((StorageWeakRef(value.untyped_storage()), value.untyped_storage().nbytes()))
        most = max(most, sum(size for _, size in seen))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "whole", gathered)
        work()
    return most


def test_no_rank_but_the_writer_ever_holds_the_whole_and_any_number_of_ranks_goes_on(tmp_path, forked_ranks):
    """The writer, which does hold the whole, shows that it is seen."""

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        parts = _parts(rank, 2, steps=3)
        saving = partial(save_training, tmp_path / "run", parts, Counters(step=3), keep=1)
        held = _held(saving, patience=10.0 if rank else 0.0)
        saved, folder = _whole(parts), tmp_path / "run" / "step-00000003"
        again = _parts(rank, 2, seed=1)
        load_training(folder, again)
        assert _same(_whole(again), saved)
        (tmp_path / f"held-{rank}.json").write_text(json.dumps(held))
        if rank == 0:
            checkpoint.save_state(tmp_path / "saved", saved)

    assert forked_ranks(work) == [0, 0]
    sizes = [p.numel() * p.element_size() for p in MaskedDiffusionLM.from_config(CONFIG, 31).parameters()]
    writer, other = (json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2))
    assert other == max(sizes)
    assert writer >= sum(sizes)

    folder = tmp_path / "run" / "step-00000003"
    assert sorted(p.name for p in folder.iterdir()) == [
        "ema", "manifest.json", "model", "moments-0.json", "moments-0.safetensors", "moments-1.json",
        "moments-1.safetensors", "optimizer.json", "optimizer.safetensors", "rank-0.json", "rank-0.safetensors",
        "rank-1.json", "rank-1.safetensors",
    ]  # fmt: skip
    saved = checkpoint.load_state(tmp_path / "saved")
    one = _parts(seed=1)
    load_training(folder, one)
    assert _same(_whole(one), saved)
    AutoModelForCausalLM.from_pretrained(folder / "model")


@pytest.mark.slow
def test_two_ranks_go_on_with_what_one_left(tmp_path, forked_ranks):
    one = _parts(steps=3)
    (tmp_path / "run").mkdir()
    folder = save_training(tmp_path / "run" / "checkpoints", one, Counters(step=3), keep=1)

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        parts = _parts(rank, 2, seed=1)
        load_training(folder, parts)
        assert isinstance(next(iter(parts.optimizer.state.values()))["exp_avg"], DTensor)
        assert _same(_whole(parts), _whole(one))

    assert forked_ranks(work) == [0, 0]


@pytest.mark.slow
def test_torchs_own_sharded_saving_unpickles_what_other_ranks_send(tmp_path, forked_ranks):
    """Why it is not used, docs/decisions/0018; once this fails, look again."""

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        model = _parts(rank, 2).model
        plans, plain = [], pickle.Unpickler

        class Seen(plain):
            def load(self):
                plans.append(found := super().load())
                return found

        torch.distributed.distributed_c10d._unpickler = Seen
        writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "torch"), save_distributed=True)
        dcp.save(model.state_dict(), storage_writer=writer)
        assert any("SavePlan" in repr(plan) for plan in plans)

    assert forked_ranks(work) == [0, 0]

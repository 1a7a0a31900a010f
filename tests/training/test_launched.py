"""What `torchrun` and `accelerate launch` may decide of a run, and what not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from unmask.data.sudoku import load_sudoku
from unmask.recipes import RowsOnDisk, rows
from unmask.runs.launch import run_jobs
from unmask.training import read_metrics
from unmask.training.launched import OURS, check_launch, warn_of_unused

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SHARDED |= dict.fromkeys(
    ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"), "false"
)  # as accelerate launch says
RANK = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
SPLIT = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
REFUSED = {
    "DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true: DeepSpeed.*use FSDP2"),
    "Megatron-LM": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM brings.*use FSDP2"),
    "FSDP1": ({**SHARDED, "FSDP_VERSION": "1"}, "FSDP_VERSION=1.*set fsdp_version: 2"),
    "FSDP of no version": ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=1.*set fsdp_version: 2"),
    "float8": ({**SHARDED, "FSDP_FLOAT8_ALL_GATHER": "True"}, "float8 all-gather rounds the weights"),
    "offload": ({**SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}, "CPU offload takes weights.*leave it out"),
    "ignored": ({**SHARDED, "FSDP_IGNORED_MODULES": "lm_head"}, "FSDP_IGNORED_MODULES=lm_head: FSDP's ignored"),
    "layers": ({**SHARDED, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use the run's own .--activation-checkpointing"),
    "tensors": ({**SPLIT, "PARALLELISM_CONFIG_TP_SIZE": "2"}, r"tensor parallelism \(tp_size\)"),
    "contexts": ({**SPLIT, "PARALLELISM_CONFIG_CP_SIZE": "2"}, r"context parallelism \(cp_size\)"),
    "sequences": ({**SPLIT, "PARALLELISM_CONFIG_SP_SIZE": "2"}, r"sequence parallelism \(sp_size\)"),
    "no rank": ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 without RANK and LOCAL_RANK: .*torchrun"),
}


@pytest.mark.parametrize(("environment", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_run_cannot_do_is_refused_by_name_with_what_to_use(environment, message):
    with pytest.raises(ValueError, match=message):
        check_launch(environment)


@pytest.mark.parametrize("environment", [{}, RANK, {**RANK, **SHARDED}, {**RANK, **SHARDED, **SPLIT}])
def test_devices_ranks_and_shared_weights_are_the_launchers(environment):
    check_launch(environment)


def test_deepspeed_is_refused_before_a_model_is_built(command, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("unmask.recipes.SudokuModel.build", lambda self: pytest.fail("a model was built"))
    code, _, said = command("train", "sudoku", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "use FSDP2" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OURS)
def test_what_is_overridden_is_said_once_by_the_first_rank(monkeypatch, recwarn, name):
    monkeypatch.setenv(name, OURS[name][1].upper())  # asks for nothing
    warn_of_unused()
    monkeypatch.setenv(name, "7")
    monkeypatch.setenv("RANK", "1")
    warn_of_unused()
    assert not recwarn
    monkeypatch.setenv("RANK", "0")
    with pytest.warns(UserWarning, match=f"{OURS[name][0]} 7 of accelerate's config is not used: .*{OURS[name][2]}"):
        warn_of_unused()


def test_a_study_is_not_started_by_many_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it in one process, and 2 were started: leave out torchrun"):
        run_jobs([])


@pytest.mark.slow
def test_plain_torchrun_on_a_cpu_is_one_run_of_two_ranks(tmp_path):
    """As typed, and whatever an accelerate config says besides."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    small = ["--model.layers=1", "--model.width=16", "--model.heads=2", "--batch-size=8", "--data.limit=50"]
    small += ["--evaluation.puzzles=4", "--evaluation.final-puzzles=4", "--tracker=none", "--steps=2"]
    theirs = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}
    said = subprocess.run(
        [sys.executable, *launch, "-m", "unmask", "train", "sudoku", "--out=run", *small],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | theirs | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr[-4000:]
    assert said.stderr.count("gradient_accumulation_steps 3 of accelerate's config is not used") == 1
    assert [line["ranks"] for line in read_metrics(tmp_path / "run", "start")] == [2]
    assert len(read_metrics(tmp_path / "run", "train")) == 2


@pytest.mark.slow
def test_what_is_measured_before_training_does_not_part_the_ranks(forked_ranks, tmp_path, monkeypatch):
    """GIFT's entropies are taken on the device of the rank, before there is a trainer."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    load_sudoku("train", limit=60).to_parquet(tmp_path / "rows.parquet")
    data = RowsOnDisk(str(tmp_path / "rows.parquet"), divided=True)
    run = rows("gift", data, steps=2, batch_size=8)
    training = replace(run.training, warmup_steps=1, evaluate_every=None, tracker="none", threads=1)
    run = replace(run, model=replace(run.model, layers=1, width=16, heads=2), training=training)
    assert forked_ranks(lambda rank: run.train(tmp_path / "run") and None) == [0, 0]
    assert [line["ranks"] for line in read_metrics(tmp_path / "run", "start")] == [2]

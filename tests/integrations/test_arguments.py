"""Each argument of transformers' trainer that could change loss or model works, or is refused by its name."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, TrainingArguments

from unmask import ELBO, PPOTS, IndependentMasking, MaskedDiffusionLM
from unmask.integrations import MaskedDiffusionTrainer
from unmask.integrations.arguments import IDLE, REFUSED, WORKS

MASK = 11
ROWS = Dataset.from_dict(
    {"tokens": [[(i * j) % MASK for j in range(8)] for i in range(1, 21)], "maskable": [[True] * 8] * 20}
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
UNLIKE_DEFAULT = {
    "label_smoothing_factor": 0.1,
    "liger_kernel_config": {"swiglu": True},
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "average_tokens_across_devices": False,
    "include_num_input_tokens_seen": "all",
    "include_for_metrics": ["loss"],
    "train_sampling_strategy": "sequential",
    "data_seed": 3,
    "accelerator_config": {"split_batches": True},
}
CHANGES = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "constant",
    "warmup_steps": 2,
    "optim": "adagrad",
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1e-6,
    "bf16": True,
    "seed": 1,
    "neftune_noise_alpha": 5.0,
    "lr_scheduler_kwargs": {"power": 3.0},
    "load_best_model_at_end": True,
    "greater_is_better": True,
}
"""What trains other weights, and a value unlike the default."""
KEEPS = {
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "torch_empty_cache_steps": 1,
    "num_train_epochs": 1.0,  # max_steps goes before it
    "per_device_eval_batch_size": 1,
    "logging_steps": 2,
    "output_dir": "elsewhere",
    "activation_checkpointing_kwargs": {"preserve_rng_state": True},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "logging_strategy": "epoch",
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "disable_tqdm": False,
    "report_to": "none",
    "run_name": "other",
    "project": "other",
    "eval_strategy": "epoch",
    "eval_steps": 1,
    "eval_delay": 2,
    "eval_on_start": True,
    "save_only_model": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_on_each_node": True,
    "save_total_limit": 1,
    "metric_for_best_model": "eval_loss",  # there is no other
    "enable_jit_checkpoint": True,
    "restore_callback_states_from_checkpoint": True,
    "full_determinism": True,
    "use_cpu": False,
    "debug": "underflow_overflow",
    "skip_memory_metrics": False,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_timeout": 60,
}
"""What works beside the training, and leaves the weights as they are."""

BEST = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
BESIDE = {
    "lr_scheduler_kwargs": {"lr_scheduler_type": "polynomial"},
    "load_best_model_at_end": BEST | {"learning_rate": 3.0},  # which ends worse than it was
    "metric_for_best_model": BEST | {"load_best_model_at_end": True, "greater_is_better": True},
    "greater_is_better": BEST | {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"},
    "eval_steps": {"eval_strategy": "steps"},
    "eval_delay": {"eval_strategy": "steps", "eval_steps": 1},
}
"""What a field needs beside it."""
UNTRIED = {
    **dict.fromkeys(("optim_args", "optim_target_modules"), "an optimizer from another package"),
    **dict.fromkeys(("fp16", "tf32"), "a GPU"),
    **dict.fromkeys(("ddp_backend", "local_rank"), "several processes"),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
            *("hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ),
        "a network",
    ),
}
"""What no test here runs, and what that would take."""


def arguments(out, **settings) -> TrainingArguments:
    plain = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
    plain |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 0}
    return TrainingArguments(str(out), **plain | settings)


def trainer(args: TrainingArguments, **options) -> MaskedDiffusionTrainer:
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(LlamaConfig(vocab_size=MASK + 1, **SIZES), MASK)
    return MaskedDiffusionTrainer(model, args, masking=IndependentMasking(), train_dataset=ROWS, **options)


def losses(run: MaskedDiffusionTrainer) -> list[float]:
    run.train()
    return [line["loss"] for line in run.state.log_history if "loss" in line]


def test_every_field_of_the_installed_version_is_classified_once():
    known = {field.name for field in fields(TrainingArguments)}
    classes = (WORKS, IDLE, frozenset(REFUSED))
    assert known - frozenset().union(*classes) == set(), "say in integrations/arguments.py what these do"
    assert sum(map(len, classes)) == len(frozenset().union(*classes))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_ignored_is_refused_by_name(name, tmp_path):
    args = arguments(tmp_path)
    setattr(args, name, UNLIKE_DEFAULT.get(name, True))  # some the arguments themselves refuse on a CPU
    with pytest.raises(ValueError, match=rf"TrainingArguments\({name}="):
        trainer(args)


def test_every_field_that_works_is_tried_or_says_what_it_would_take():
    tried = (set(CHANGES), set(KEEPS), set(UNTRIED))
    assert set().union(*tried) == WORKS
    assert sum(map(len, tried)) == len(WORKS)


@pytest.mark.slow
def test_what_works_does_what_it_says_to_the_weights(tmp_path):
    def weights(**settings) -> torch.Tensor:
        run = trainer(arguments(settings.pop("output_dir", "out"), **settings), eval_dataset=ROWS.select(range(4)))
        run.train()
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    same = {}
    with contextlib.chdir(tmp_path):
        for name, value in (CHANGES | KEEPS).items():
            beside = BESIDE.get(name, {})
            same[name] = bool(torch.allclose(weights(**beside | {name: value}), weights(**beside)))
    assert same == dict.fromkeys(CHANGES, False) | dict.fromkeys(KEEPS, True)


def test_a_field_that_is_not_known_is_refused_where_it_is_set(tmp_path, monkeypatch):
    from unmask.integrations import arguments as module

    monkeypatch.setattr(module, "WORKS", WORKS - {"adam_beta2"})
    trainer(arguments(tmp_path))
    with pytest.raises(ValueError, match=r"\(adam_beta2=.*does not know"):
        trainer(arguments(tmp_path, adam_beta2=0.5))


@pytest.mark.parametrize("option", ["compute_loss_func", "compute_metrics", "data_collator"])
def test_functions_that_nobody_would_call_are_refused(option, tmp_path):
    with pytest.raises(ValueError, match=f"does not take {option}"):
        trainer(arguments(tmp_path), **{option: lambda *_: None})


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_of_activations_trains_the_same(name, tmp_path):
    plain, checkpointed = (trainer(arguments(tmp_path, **more)) for more in ({}, {name: True}))
    assert losses(checkpointed) == pytest.approx(losses(plain), abs=1e-5)
    assert checkpointed.model.is_activation_checkpointing


def test_noise_at_the_embeddings_is_there_while_it_trains(tmp_path):
    run = trainer(arguments(tmp_path, neftune_noise_alpha=5.0))
    plain = losses(trainer(arguments(tmp_path)))
    noisy = losses(run)
    assert max(abs(a - b) for a, b in zip(plain, noisy, strict=True)) > 1e-3
    assert not hasattr(run.model.get_input_embeddings(), "neftune_noise_alpha")  # and gone afterwards


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    each = losses(trainer(arguments(tmp_path, max_steps=6)))
    means = losses(trainer(arguments(tmp_path, max_steps=6, logging_steps=3)))
    assert means == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], abs=1e-4)


def test_weights_in_fp16_are_refused_under_fp16(tmp_path):
    args, config = arguments(tmp_path, fp16=True), LlamaConfig(vocab_size=MASK + 1, **SIZES)
    model = MaskedDiffusionLM.from_config(config, MASK).half()
    with pytest.raises(ValueError, match="fp16 too"):
        MaskedDiffusionTrainer(model, args, masking=IndependentMasking(), train_dataset=ROWS)


def test_an_evaluation_is_in_the_precision_of_the_steps_before_and_after_them(tmp_path):
    run, seen = trainer(arguments(tmp_path, bf16=True), eval_dataset=ROWS.select(range(2))), []
    layer = run.model.backbone.get_submodule("layers.0.mlp.down_proj")
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run.evaluate()
    assert set(seen) == {torch.bfloat16}
    run.train()
    run.evaluate()
    assert set(seen) == {torch.bfloat16}


def test_rates_are_not_fitted_to_the_rows_that_evaluate(tmp_path):
    model, args = trainer(arguments(tmp_path)).model, arguments(tmp_path)
    options = {"masking": IndependentMasking(PPOTS()), "objective": ELBO(), "train_dataset": ROWS}
    with pytest.raises(ValueError, match="held_out rows"):
        MaskedDiffusionTrainer(model, args, eval_dataset=ROWS, **options)
    MaskedDiffusionTrainer(model, args, held_out=ROWS, **options)


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from datasets import Dataset
from transformers import EsmConfig, TrainingArguments
from unmask import *
from unmask.integrations import MaskedDiffusionTrainer

out = Path(sys.argv[1]) / os.environ["RANK"]  # a folder of its own shows what each rank writes
torch.manual_seed(0)
config = EsmConfig(vocab_size=12, mask_token_id=11, pad_token_id=0, hidden_size=16, num_hidden_layers=1,
                   num_attention_heads=2, intermediate_size=24, max_position_embeddings=32)
model = MaskedDiffusionLM.from_config(config, 11)
rows = Dataset.from_dict({"tokens": [[1, *range(2, 9)]] * 20, "maskable": [[False] + [True] * 7] * 20})
args = TrainingArguments(str(out), max_steps=4, per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True,
                         save_steps=2, ddp_find_unused_parameters=False)
trainer = MaskedDiffusionTrainer(model, args, masking=IndependentMasking(), train_dataset=rows)
trainer.train()
assert trainer.state.global_step == 4
trainer.save_model()
"""


@pytest.mark.slow
def test_two_processes_train_a_model_with_unused_parts_and_the_first_writes_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    written = {str(path.relative_to(tmp_path).parent) for path in tmp_path.rglob("model.safetensors")}
    assert written == {"0", "0/checkpoint-2", "0/checkpoint-4"}
    assert {p.name for p in tmp_path.glob("*/checkpoint-4/masking-*.json")} == {"masking-0.json", "masking-1.json"}

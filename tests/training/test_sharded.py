"""FSDP2 as `accelerate launch` sets it up: two processes that share the weights train what one trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from unmask import IndependentMasking, LoRA, add_lora
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.evaluation.likelihood import likelihood
from unmask.recipes import TextModel
from unmask.training import read_metrics

SIZES = {"vocab_size": VOCAB_SIZE, "mask_token_id": MASK_TOKEN, "layers": 2, "width": 16, "heads": 2}
SIZES |= {"positions": 162}
SETTINGS = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "micro_batch_size": 1, "ema_decay": 0.9}
# What `accelerate launch --use_fsdp --fsdp_version 2` puts into the environment of its processes.
LAUNCHED = {
    "ACCELERATE_USE_CPU": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
SCRIPT = """
import itertools, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from unmask import *
from unmask.training import trainer as loop
from unmask.data.sudoku import load_sudoku
from unmask.evaluation.likelihood import likelihood
from unmask.recipes import TextModel

connect = loop.accelerator_of
def shard(*arguments):
    "accelerate shards on GPUs alone: the state that it has there is set here, and its own code runs on the CPU."
    accelerator = connect(*arguments)
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=efficient)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator
loop.accelerator_of = shard

out = Path(sys.argv[1])
rows, held_out = load_sudoku("train", limit=40), load_sudoku("test", limit=3)
for efficient, kind in itertools.product((True, False), ("tied", "untied", "lora")):
    tied = kind == "tied"
    stopping = False
    def evaluate(model, last):
        if stopping and trainer.step == 3:
            raise KeyError("stopped after the first checkpoint")
        made = generate(model, RowStream(held_out).rows(torch.arange(2)), Decoding(steps=4))
        return {{"made": made.tokens.tolist(), "loss": likelihood(model, held_out).nats_per_token.value}}
    def make():
        torch.manual_seed(0)
        model = TextModel(tied=tied, **{sizes!r}).build().double()
        if kind == "lora":
            add_lora(model, LoRA(rank=4))
        config = TrainingConfig(precision="fp32", threads=1, warmup_steps=2, log_every=1, tracker="none",
                                evaluate_every=3, **{settings!r})
        return Trainer(model, IndependentMasking(), rows, RowMean(), config, out=out / f"{{kind}}-{{efficient}}",
                       evaluate=evaluate)
    trainer = make()
    names = {{id(p): name for name, p in trainer.model.named_parameters()}}
    held = {{names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}}
    trained = {{name for name, p in trainer.model.named_parameters() if p.requires_grad}}
    assert held == trained and (kind == "lora") == (trained < set(names.values())), trained ^ held
    output = trainer.model.get_output_embeddings().weight
    assert (output is trainer.model.get_input_embeddings().weight) == tied
    layers = [m for m in trainer.model.modules() if type(m).__name__.endswith("LlamaDecoderLayer")]
    assert all(type(m).__name__.startswith("FSDP") for m in layers) and layers
    if efficient:  # and the other goes on with what the first part left
        trainer.train()
    else:
        stopping = True
        try:
            trainer.train()
        except KeyError:
            trainer = make()
        stopping = False
        trainer.train(resume=True)
        output = trainer.model.get_output_embeddings().weight
    assert (output is trainer.model.get_input_embeddings().weight) == tied
"""


def _run(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT.format(settings=SETTINGS, sizes=SIZES))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, *launch, str(folder / "script.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **LAUNCHED, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_tied_untied_and_adapted_weights_train_as_in_one_process_and_are_saved_so(tmp_path, trainer, weights_in):
    """With the weights loaded by every process, or by the first one alone (`cpu_ram_efficient_loading`)."""
    _run(tmp_path)
    for kind in ("tied", "untied", "lora"):
        torch.manual_seed(0)
        model = TextModel(tied=kind == "tied", **SIZES).build().double()
        if kind == "lora":
            add_lora(model, LoRA(rank=4))
        run = trainer(f"one-{kind}", model=model, masking=IndependentMasking(), **SETTINGS)
        one = run.train()
        with run.average.applied():
            nats = likelihood(run.model, load_sudoku("test", limit=3)).nats_per_token.value
        for efficient in (True, False):
            out = tmp_path / f"{kind}-{efficient}"
            two = out / "checkpoints" / one.name
            for which, near in (("model", 1e-8), ("ema", 1e-6)):  # the average is fp32
                weights, wanted = weights_in(two, which), weights_in(one, which)
                assert weights.keys() == wanted.keys()
                for tensor in wanted:
                    torch.testing.assert_close(weights[tensor], wanted[tensor], rtol=near, atol=near)
            if kind != "lora":
                opened = AutoModelForCausalLM.from_pretrained(two / "model", dtype="auto")
                assert (opened.lm_head.weight is opened.model.embed_tokens.weight) == (kind == "tied")
            assert read_metrics(out, "evaluation")[-1]["loss"] == pytest.approx(nats)

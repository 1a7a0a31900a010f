"""What only GPUs can show; `python -m benchmarks.gpu` runs it. Where ranks are more than GPUs, a test is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from unmask import ELBO, Bell, ExactCount, IndependentMasking, MaskedDiffusionLM, MaskedMean, ProgressiveUnmasking
from unmask.training import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from unmask import *
from unmask.data.sudoku import MASK_TOKEN, VOCAB_SIZE, load_sudoku
from unmask.distributed import is_sharded
from unmask.evaluation.likelihood import likelihood
from unmask.recipes import TextModel

out, steps, sharded = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "FSDP2"
held_out = load_sudoku("test", limit=3)

def evaluate(model, last):
    made = generate(model, RowStream(held_out).rows(torch.arange(2)), Decoding(steps=4))
    return {"made": made.tokens.tolist(), "loss": likelihood(model, held_out).nats_per_token.value}

torch.manual_seed(0)
model = TextModel(vocab_size=VOCAB_SIZE, mask_token_id=MASK_TOKEN, layers=2, width=16, heads=2, positions=81).build()
config = TrainingConfig(steps=steps, batch_size=4, micro_batch_size=1, checkpoint_every=2, ema_decay=0.9,
                        precision="fp32", schedule="constant", warmup_steps=1, evaluate_every=2, log_every=1,
                        tracker="none")
trainer = Trainer(model, IndependentMasking(), load_sudoku("train", limit=40), config=config, out=out,
                  evaluate=evaluate)
if dist.is_initialized():
    assert dist.get_backend() == "cuda:nccl,cpu:gloo", dist.get_backend()
assert is_sharded(trainer.model) == sharded
trainer.train(resume=True)
"""
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def _train(folder: Path, out: str, ranks: int, steps: int, kind: str) -> None:
    (folder / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    done = subprocess.run(
        [sys.executable, *launch, str(folder / "script.py"), str(folder / out), str(steps), kind],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(SHARDED if kind == "FSDP2" else {})},
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_ranks_on_gpus_train_save_resume_and_evaluate_as_one_process_does(tmp_path, weights_in, kind, ranks):
    """Started twice, so that the second half goes on from what the first has saved."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    _train(tmp_path, "one", 0, 4, "alone")
    for steps in (2, 4):
        _train(tmp_path, "many", ranks, steps, kind)
    for which in ("model", "ema"):
        found, wanted = (
            weights_in(tmp_path / out / "checkpoints" / "step-00000004", which) for out in ("many", "one")
        )
        assert found.keys() == wanted.keys()
        for tensor in wanted:
            torch.testing.assert_close(found[tensor], wanted[tensor], rtol=1e-3, atol=1e-4)
    many, one = (read_metrics(tmp_path / out, "evaluation")[-1] for out in ("many", "one"))
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert {line["ranks"] for line in read_metrics(tmp_path / "many", "start")} == {ranks}


ARMS = {
    "standard": (IndependentMasking(coupling="stratified"), ELBO()),
    "bell": (IndependentMasking(Bell(), ExactCount(), "stratified"), MaskedMean()),
    "puma": (ProgressiveUnmasking(stages=4, threshold=0.5), None),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(("masking", "objective"), ARMS.values(), ids=ARMS)
def test_a_step_waits_for_nothing_that_it_did_not_queue_a_copy_of(trainer, masking, objective, parts):
    """Under torch's own watch; events, by which the scores' copy is waited for, are outside of it."""
    run = trainer("run", masking=masking, objective=objective, micro_batch_size=8 // parts, log_every=1000)
    run.wrapped.train()
    for step in range(5):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            figures = run._train_step()
            run.counters.step += 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert figures.outputs.read().nll.isfinite().all()


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_a_kernel_of_gpus_trains_as_sdpa_does(trainer, rows, kernel):
    if kernel.startswith("flash") and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    config = LlamaConfig(
        vocab_size=11, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    losses = {}
    for name in ("sdpa", kernel):
        torch.manual_seed(0)
        run = trainer(name, model=MaskedDiffusionLM.from_config(config, 10), attention=name, precision="bf16")
        run.train()
        assert run.model.config._attn_implementation == name
        losses[name] = [line["loss"] for line in read_metrics(run.out, "train")]
    assert losses[kernel] == pytest.approx(losses["sdpa"], rel=0.03)


def test_the_output_layer_has_the_loss_of_ligers(monkeypatch):
    """But for the mask token's share, which ours leaves out."""
    pytest.importorskip("liger_kernel")
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from benchmarks.heads import heads
    from benchmarks.steps import Size

    size = Size(layers=1, width=64, inner=96, heads=2, vocabulary=4096, length=64, batch=4)
    found = {name: float(step()) for name, step in heads(size, "cuda").items()}
    assert len(found) == 3
    assert found["Liger, loss alone"] == pytest.approx(found["unmask, loss alone"], rel=0.01)
    assert found["unmask, loss and confidence"] == pytest.approx(found["unmask, loss alone"], rel=1e-3)

"""fp16 in transformers' trainer: gradients under torch's GradScaler are those of fp32, and no fp16 is fp32."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import LlamaConfig, TrainingArguments

from unmask import ELBO, PPOTS, ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean
from unmask.integrations import MaskedDiffusionTrainer

MASK = 11
ROWS = Dataset.from_dict(
    {"tokens": [[(i * j) % MASK for j in range(8)] for i in range(1, 21)], "maskable": [[True] * 8] * 20}
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


class TinyWeights(RowMean):
    """Weights of 1e-6 and less, as those of batches of a million tokens."""

    def normaliser(self, batch):
        return super().normaliser(batch) * 1e5


def run(out, **settings) -> MaskedDiffusionTrainer:
    arguments = TrainingArguments(
        str(out),
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"per_device_train_batch_size": 8, "learning_rate": 1e-9, **settings},
    )
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(LlamaConfig(vocab_size=MASK + 1, initializer_range=0.2, **SIZES), MASK)
    masking = IndependentMasking(mask=ExactCount())
    return MaskedDiffusionTrainer(model, arguments, masking=masking, objective=TinyWeights(), train_dataset=ROWS)


def norms(trainer: MaskedDiffusionTrainer) -> list[float]:
    """Of the gradients, unscaled, step by step."""
    trainer.train()
    return [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]


def test_a_cpu_that_would_compute_in_fp32_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fp16=True.*fp32 without a word"):
        run(tmp_path, fp16=True, use_cpu=True)


def test_fp16_of_accelerate_s_config_is_fp16(tmp_path, monkeypatch):
    """Arguments that ask for nothing take what `accelerate launch` leaves in the environment."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp32 without a word"):
        run(tmp_path, use_cpu=True)


def test_gradients_of_single_rows_have_no_loss_scale(tmp_path, monkeypatch):
    with_scaler(monkeypatch, 2.0**8)
    arguments = TrainingArguments(str(tmp_path), max_steps=1, fp16=True, use_cpu=True, report_to="none")
    model = MaskedDiffusionLM.from_config(LlamaConfig(vocab_size=MASK + 1, **SIZES), MASK)
    options = {"objective": ELBO(), "train_dataset": ROWS, "held_out": ROWS}
    MaskedDiffusionTrainer(model, arguments, masking=IndependentMasking(PPOTS()), **options)
    masking = IndependentMasking(PPOTS(moment="gradient"))
    with pytest.raises(ValueError, match="no loss scale: use bf16"):
        MaskedDiffusionTrainer(model, arguments, masking=masking, **options)


def with_scaler(monkeypatch, scale):
    """accelerate makes a scaler for GPUs alone; torch's works on a CPU too."""
    start = Accelerator.__init__

    def started(self, *arguments, **options):
        start(self, *arguments, **options)
        if self.mixed_precision == "fp16":
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)

    monkeypatch.setattr(Accelerator, "__init__", started)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("power", "error"), [(16, 0.01), (8, 0.05)])
def test_gradients_under_a_scaler_are_those_of_fp32(tmp_path, monkeypatch, power, error, accumulate):
    with_scaler(monkeypatch, 2.0**power)
    split = {"per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate}
    scaled = run(tmp_path, fp16=True, use_cpu=True, **split)
    dtypes = set()
    layer = scaled.model.backbone.get_submodule("layers.0.mlp.down_proj")
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    found = norms(scaled)
    assert scaled.accelerator.scaler.get_scale() == 2.0**power  # no step was skipped
    assert dtypes == {torch.float16}
    assert found == pytest.approx(norms(run(tmp_path, use_cpu=True)), rel=error)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_on_a_gpu_are_those_of_fp32(tmp_path):
    assert norms(run(tmp_path, fp16=True)) == pytest.approx(norms(run(tmp_path)), rel=0.01)

"""A training step of ours, and the plain one that public code takes, for the same model and the same kind of rows."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from unmask import Clipped, ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean, Trainer, TrainingConfig
from unmask.training.figures import Figures
from unmask.training.platform import compile_layers

Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """A bidirectional Llama and the rows it reads; half of the maskable positions are masked."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    length: int
    batch: int
    prompt: int = 0
    """Leading positions that are never masked."""
    tied: bool = False

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.length,
            tie_word_embeddings=self.tied,
            is_causal=False,
            use_cache=False,
        )

    @property
    def mask_token(self) -> int:
        return self.vocabulary - 1

    def rows(self, batches: int = 4) -> Tensor:
        """Random tokens below the mask token, the same at each call."""
        shape = (batches * self.batch, self.length)
        return torch.randint(self.mask_token, shape, generator=torch.Generator().manual_seed(0))


def reference(size: Size, bf16: bool) -> tuple[Step, int]:
    """Full [B, L, V] log-softmax, loss by gather, confidence from the same tensor, all else by default.

    Returns the step, and the bytes that weights, gradients and optimiser take beside what is resident.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where the trainer runs, too
    model = LlamaForCausalLM(size.config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batches = iter(size.rows().to(device).split(size.batch) * 1000)
    maskable = torch.arange(size.length, device=device) >= size.prompt

    def step() -> Tensor:
        clean = next(batches)
        masked = (torch.rand(clean.shape, device=device) < 0.5) & maskable
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(input_ids=clean.masked_fill(masked, size.mask_token)).logits
        log_probs = logits.float().log_softmax(-1)
        nll = -log_probs.gather(-1, clean[..., None])[..., 0]
        confidence = log_probs.detach().max(-1).values
        loss = ((nll * masked).sum(1) / masked.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return confidence

    return step, _state_bytes(model)


def ours(size: Size, precision: str = "auto", compiled: bool = False) -> tuple[Step, int]:
    """The trainer's own step, with scores, gradient lengths and the log's figures at every step."""
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(size.config, size.mask_token)
    tokens = size.rows()
    maskable = [[position >= size.prompt for position in range(size.length)]] * len(tokens)
    steps = 1_000_000
    trainer = Trainer(
        model,
        IndependentMasking(Clipped(0.49, 0.51), ExactCount()),
        Dataset.from_dict({"tokens": tokens.tolist(), "maskable": maskable}),
        RowMean(),
        TrainingConfig(
            steps=steps, batch_size=size.batch, log_every=1, tracker="none", precision=precision, compile=compiled
        ),
        out=Path(tempfile.gettempdir()) / "unmask-benchmark",  # nothing is written without `train`
    )
    trainer.wrapped.train()
    if compiled:
        compile_layers(trainer.model, trainer.accelerator.device, dynamic=False)

    figures: list[Figures] = []

    def step() -> None:
        figures.append(trainer._train_step())
        trainer.counters.step += 1
        if len(figures) > 1:  # one step late, as `train` does
            figures.pop(0).read(trainer.diagnostics, 1, lambda x: x)

    return step, _state_bytes(model)


def _state_bytes(model: torch.nn.Module) -> int:
    """Resident memory now, with the weights in it, and what gradients and AdamW's two moments will add."""
    ctypes.CDLL(None).malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return 1024 * int(status["VmRSS"].split()[0]) + 3 * weights

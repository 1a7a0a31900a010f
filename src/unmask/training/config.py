"""TrainingConfig: the loop's settings, checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from unmask.config import ours, positive_int, require


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Rows of one step, over all ranks together."""
    micro_batch_size: int | None = None
    """Rows of one forward on one rank; gradients are accumulated over a step. None: all at once."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    final_learning_rate: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay; not applied to norms, biases and other vectors."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.98
    """AdamW's second decay rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; what is logged is the norm before."""
    ema_decay: float | None = None
    """Decay of the weights' moving average, used for evaluation and saved beside the weights. None: off."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Matrix products in bf16 or fp16 (weights and statistics stay fp32; fp16 with a loss scale), or everything in
    fp32. auto: bf16 where the processor or the GPU has it, fp16 on a GPU without, fp32 elsewhere."""
    attention: Literal["auto", "plain", "eager", "sdpa"] = "auto"
    """Attention kernel: plain products (eager: the backbone's own version of them) or torch's fused kernels. auto:
    plain where it is faster for device and precision and rows are short, else sdpa."""
    compile: bool | None = None
    """Compile the backbone's layers (torch.compile) for training steps. The first steps take up to a minute longer,
    the others less (`python -m benchmarks step` measures both). None: where the run is long enough to gain by it
    (`unmask.training.platform`)."""
    threads: int | None = None
    """CPU threads. None: what torch chooses."""
    seed: int = 0
    """Of weights, data order and masks."""
    evaluate_every: int | None = None
    """Steps between evaluations; the start and the last step are always evaluated. None: these alone."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; the last step is always saved. None: at the end alone."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted once a new one is whole."""
    tracker: str = "tensorboard"
    """Where else metrics go: a tracker of accelerate by name (tensorboard, wandb, mlflow, ...), or none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep_checkpoints"):
            positive_int(name, getattr(self, name))
        for name in ("micro_batch_size", "threads", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        for name in ("warmup_steps", "seed"):
            positive_int(name, getattr(self, name), least=0)
        choices = {
            "schedule": ("cosine", "constant"),
            "precision": ("auto", "bf16", "fp16", "fp32"),
            "attention": ("auto", "plain", "eager", "sdpa"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        require(self.learning_rate > 0, f"learning_rate must be greater than 0, got {self.learning_rate}")
        require(self.clip_norm > 0, f"clip_norm must be greater than 0, got {self.clip_norm}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        share = self.final_learning_rate
        require(0 <= share <= 1, f"final_learning_rate is a share of the peak in [0, 1], got {share}")
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: a function of the step alone, so there is no scheduler to save."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_learning_rate + (1 - self.final_learning_rate) * cosine)

    @property
    def resumable(self) -> dict[str, Any]:
        """The settings that a resumed run must share; the others may change without changing the weights."""
        free = {"evaluate_every", "log_every", "checkpoint_every", "keep_checkpoints", "tracker", "threads"}
        return {name: value for name, value in vars(self).items() if name not in free}


ours(TrainingConfig)

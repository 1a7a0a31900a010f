"""TrainingConfig: the loop's settings, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unmask.config import differences, from_json, ours, positive_int, require, to_json
from unmask.data.importance import RowImportance

Schedule = Literal["cosine", "linear", "constant", "warmup_stable_decay"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Rows of one step, over all ranks together."""
    importance: RowImportance | None = None
    """Draw rows in proportion to their loss and weigh them back: RowImportance(uniform=0.3), say. Not with
    ProgressiveUnmasking, which keeps rows for many steps. None: every row once an epoch."""
    micro_batch_size: int | None = None
    """Rows of one forward on one rank; gradients are accumulated over a step. None: all at once."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up, as transformers' schedules of these names; warmup_stable_decay:
    constant, and a cosine over the last `decay_steps`."""
    final_learning_rate: float = 0.0
    """Where the rate ends, as a share of the peak."""
    decay_steps: int | None = None
    """Steps of the decay of warmup_stable_decay. None: a tenth of all."""
    anneal_from: int = 0
    """Step from which the schedule runs anew, warm-up included: where a finished run is to go on for more steps."""
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
    fp32. auto: bf16 where the GPU has it or the processor has AMX, fp16 on a GPU without, fp32 elsewhere."""
    attention: Literal["auto", "plain", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    """Attention kernel: plain products (eager: the backbone's own version of them) or torch's fused kernels; on CUDA
    also flex attention, or flash attention where its package is installed. auto:
    plain where it is faster for device and precision and rows are short, else sdpa."""
    activation_checkpointing: bool = False
    """Run layers again in the backward instead of keeping what they computed: a forward more, and less memory."""
    compile: bool | None = None
    """Compile the backbone's layers (torch.compile) for training steps. The first steps take up to a minute longer,
    the others less (`python -m benchmarks step` measures both). None: where the run is long enough to gain by it
    (`unmask.training.platform`)."""
    threads: int | None = None
    """CPU threads. None: what torch chooses."""
    rank_timeout_minutes: float = 10.0
    """Minutes for which ranks wait for one another, as for the first one's saving, before the run ends."""
    seed: int = 0
    """Of weights, data order and masks."""
    evaluate_every: int | None = None
    """Steps between evaluations; the start and the last step are always evaluated. None: these alone."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; the last step is always saved, and the step at which a run is interrupted."""
    checkpoint_minutes: float | None = 10.0
    """Minutes between checkpoints, whatever the steps. None: no checkpoints by time."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted once a new one is whole."""
    tracker: str = "tensorboard"
    """Where else metrics go: a tracker of accelerate by name (tensorboard, wandb, mlflow, ...), or none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep_checkpoints"):
            positive_int(name, getattr(self, name))
        for name in ("micro_batch_size", "threads", "evaluate_every", "checkpoint_every", "decay_steps"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        for name in ("warmup_steps", "seed", "anneal_from"):
            positive_int(name, getattr(self, name), least=0)
        importance = self.importance
        known = importance is None or isinstance(importance, RowImportance)
        require(known, f"importance must be a RowImportance(...) or None, got {importance!r}")
        require(self.learning_rate > 0, f"learning_rate must be greater than 0, got {self.learning_rate}")
        require(self.clip_norm > 0, f"clip_norm must be greater than 0, got {self.clip_norm}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        share = self.final_learning_rate
        require(0 <= share <= 1, f"final_learning_rate is a share of the peak in [0, 1], got {share}")
        require(
            share == 0 or self.schedule != "constant",
            "a constant learning rate ends where it is: leave out final_learning_rate, or name another schedule",
        )
        require(
            self.decay_steps is None or self.schedule == "warmup_stable_decay",
            f"decay_steps is of schedule warmup_stable_decay, and {self.schedule} has none: leave it out",
        )
        require(self.anneal_from < self.steps, f"anneal_from {self.anneal_from} must be below steps {self.steps}")
        minutes = self.checkpoint_minutes
        require(minutes is None or minutes > 0, f"checkpoint_minutes must be greater than 0, got {minutes}")
        require(self.rank_timeout_minutes > 0, f"rank_timeout_minutes must be > 0, got {self.rank_timeout_minutes}")
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}")

    def check_begun(self, done: int) -> None:
        """Raise ValueError where the schedule runs anew from a step that a run, of so many done, has not come to."""
        require(
            self.anneal_from <= done,
            f"anneal_from {self.anneal_from} is for a run that goes on after so many steps, and {done} are done: "
            "--anneal-from 0, or --resume it",
        )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: a function of the step alone, so there is no scheduler to save."""
        done, steps = step - self.anneal_from, self.steps - self.anneal_from
        if done < self.warmup_steps:
            return self.learning_rate * (done + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        first = self.warmup_steps
        if self.schedule == "warmup_stable_decay":
            first = max(first, steps - (self.decay_steps or max(1, steps // 10)))
        progress = max(0, done - first) / max(1, steps - first)
        left = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_learning_rate + (1 - self.final_learning_rate) * left)

    def changes_from(self, saved: Mapping[str, Any], done: int, given: Mapping[str, str] | None = None) -> list[str]:
        """What keeps a saved run from going on with these settings; empty where nothing does.

        Where it is evaluated, logged and saved is free, and so is how a step is split. More steps are free where the
        learning rates of the steps done stay what they were.

        Args:
            saved: the run's config.json, its settings complete.
            done: steps that the run has done.
            given: by name, what the user hands to the trainer in place of settings: "optimizer", "learning_rate".
                None: not known yet.
        """
        if given is not None and (found := differences(saved.get("given", {}), given, "given")):
            return found
        saved = saved["training"]
        mine = to_json(self)
        fixed = sorted(set(mine) - _FREE - _SCHEDULED)
        if found := differences({name: saved.get(name) for name in fixed}, {name: mine[name] for name in fixed}):
            return found
        before: TrainingConfig = from_json({**saved, "type": "TrainingConfig"})
        if self.steps < done:
            few = f"steps: {before.steps} -> {self.steps}, and {done} are done"
            return [f"{few}: give steps {done} or more (--steps), or another folder"]
        if self.anneal_from != before.anneal_from and not before.anneal_from <= self.anneal_from <= done:
            return [f"anneal_from: {before.anneal_from} -> {self.anneal_from}, and {done} steps are done"]
        if given is not None and "learning_rate" in given:
            return []
        if all(before.learning_rate_at(s) == self.learning_rate_at(s) for s in range(self.anneal_from, done)):
            return []
        return [
            f"steps: {before.steps} -> {self.steps}: under {self.schedule} the {done} steps done had other learning "
            f"rates than they have among {self.steps}. --anneal-from {done} runs the schedule anew from here; "
            "constant, and warmup_stable_decay before its decay, can be made longer as they are"
        ]


_FREE = {"evaluate_every", "log_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "tracker"}
_FREE |= {"threads", "micro_batch_size", "rank_timeout_minutes"}
_SCHEDULED = {"steps", "decay_steps", "anneal_from"}

ours(TrainingConfig)

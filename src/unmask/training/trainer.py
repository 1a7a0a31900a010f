"""The training loop.

One step: the process draws this rank's rows; the objective gives each masked token its weight and the batch
its normaliser Z, summed over all ranks before any forward; micro-batches are run; the optimiser steps; the
process observes the scores of the same forwards. So the gradient does not depend on how rows are split.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method

from unmask import __version__, noise
from unmask.batch import MaskedBatch
from unmask.config import require, to_json
from unmask.data.streamed import rows_of
from unmask.data.tokenizers import TextTokenizer
from unmask.distributed import is_sharded, sum_over_ranks, whole
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.output import MaskedOutput
from unmask.objectives import Objective, RowMean
from unmask.processes import Blockwise, Masking
from unmask.processes.refit import refit_time
from unmask.store import checkpoint
from unmask.store.metrics import MetricsLog, logged
from unmask.training import platform
from unmask.training.callbacks import Callback
from unmask.training.checks import check_finite, check_measured, check_results, check_start, check_unused, notes
from unmask.training.claim import claimed_folder
from unmask.training.config import TrainingConfig
from unmask.training.diagnostics import Diagnostics
from unmask.training.ema import WeightAverage
from unmask.training.figures import Figures
from unmask.training.interrupts import Interrupts, end
from unmask.training.later import Later
from unmask.training.log import RunLog
from unmask.training.loss_scale import LossScale
from unmask.training.micro import StepOutputs, forward_backward, weighed
from unmask.training.occasions import Occasions
from unmask.training.optimizer import OptimizerFactory, adamw, parameter_groups, updates_where_finite
from unmask.training.progress import Display, TrainingProgress, shown_of
from unmask.training.ranks import accelerator_of
from unmask.training.state import Counters, Parts, load_training, save_training

Evaluation = Callable[[MaskedDiffusionLM, bool], dict[str, Any]]


class Trainer:
    """Train a masked diffusion model; leave checkpoints, metrics and the resolved config in a folder.

    Args:
        model: the denoiser.
        masking: config of the forward process.
        dataset: rows with `tokens` and `maskable`; it may be streamed.
        objective: weights of the masked tokens' losses.
        config: the loop's settings.
        out: folder of the run.
        held_out: rows for time distributions that measure the model (`PPOTS`): others than those that evaluate it.
        evaluate: called as (model, last) with the averaged weights, if there is an average; `last` tells the
            evaluation after the last step. Its numbers go to the log, "solved" and "loss" to the display too.
        run: all that makes the run, configs by name, saved as `config.json` and compared on resume.
        tokenizer: what made the rows' tokens, if they are text: saved beside the weights, and compared on resume.
        name: of the run, on the display and for trackers.
        optimizer: makes the optimiser of parameter groups; by default AdamW as the config says.
        learning_rate: of step 0, 1, ..., a function of the step alone; by default as the config says.
        callbacks: told of steps, evaluations and checkpoints; see `unmask.training.callbacks`.

    Raises:
        ValueError: for anything that could not train: an objective that refuses the masking, rows that hold
            the mask token or have no maskable position, another model's tokenizer, a batch that does not divide.
    """

    @kinds_checked
    def __init__(
        self,
        model: MaskedDiffusionLM,
        masking: Masking,
        dataset: Dataset | IterableDataset,
        objective: Objective | None = None,
        config: TrainingConfig | None = None,
        *,
        out: str | Path,
        held_out: Dataset | None = None,
        evaluate: Evaluation | None = None,
        run: dict[str, Any] | None = None,
        tokenizer: TextTokenizer | None = None,
        name: str = "train",
        optimizer: OptimizerFactory | None = None,
        learning_rate: Callable[[int], float] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        MaskedDiffusionLM.check(model)
        self.config = config = config or TrainingConfig()
        said = "evaluate_every says how often to evaluate: give the trainer evaluate too, or leave it out"
        require(config.evaluate_every is None or evaluate is not None, said)
        self.learning_rate, self.callbacks = learning_rate or config.learning_rate_at, list(callbacks)
        given = {"optimizer": optimizer, "learning_rate": learning_rate}
        self.given = {
            key: getattr(value, "__qualname__", type(value).__name__) for key, value in given.items() if value
        }
        self.held_out, self.masking, self.objective = held_out, masking, objective or RowMean()
        self.objective.check(masking)
        self.out, self.evaluate, self.name, self.tokenizer = Path(out), evaluate, name, tokenizer
        self.run = run or {"masking": masking, "objective": self.objective}
        if tokenizer is not None:
            model.check_tokenizer(tokenizer)
        shortest, longest = model.check_rows(dataset)
        platform.keep_freed_memory()
        self.accelerator = accelerator_of(config, self.out)
        device = self.accelerator.device
        self.dtype = platform.autocast_dtype(config.precision, device)
        self.loss_scale = LossScale() if self.dtype == torch.float16 else None
        if self.loss_scale is not None:
            self.loss_scale.check(model.parameters())
        platform.set_attention(model, config.attention, device, self.dtype, longest)
        if config.activation_checkpointing:
            model.activation_checkpointing_enable()
        rows = rows_of(dataset, config.seed, *self.ranks, config.importance, model.check_rows)
        self.process = masking.start(rows, config.batch_size, config.seed)
        made = optimizer(parameter_groups(model, config.weight_decay)) if optimizer else adamw(model, config, device)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, made)
        self.model: MaskedDiffusionLM = self.accelerator.unwrap_model(self.wrapped)
        register_fsdp_forward_method(self.model, "predict")  # gathers weights as `forward` does; else nothing
        tokens = config.steps * config.batch_size * longest // self.accelerator.num_processes
        self.compiled = platform.should_compile(config.compile, self.model, device, self.dtype, tokens)
        self.one_shape = shortest == longest and not isinstance(masking, Blockwise)
        check_measured(masking, self.process, held_out, is_sharded(self.model))
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.diagnostics, self.counters, self._begun = Diagnostics(), Counters(), False
        self._unread: tuple[Figures, dict[str, Any], dict[str, Any]] | None = None

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.counters.step

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank's number, and how many ranks there are."""
        return self.accelerator.process_index, self.accelerator.num_processes

    @property
    def parts(self) -> Parts:
        """What changes from step to step."""
        changing = self.model, self.optimizer, self.process, self.average, self.loss_scale, self.callbacks
        return Parts(*changing, *self.ranks)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return checkpoint.root_of(self.out)

    def train(self, resume: bool = False, overwrite: bool = False) -> Path:
        """Run to the last step.

        Args:
            resume: go on from the newest whole checkpoint in `out`; where there is none yet, start afresh.
            overwrite: delete the run that `out` holds.

        Returns:
            The folder of the last checkpoint.

        Raises:
            ValueError: where `out` holds a run and neither is set, another run and resume is set, or no run
                but something else; or where this trainer has trained before, but to go on from a checkpoint.
            RankError: where another rank failed, was killed or stands still.
            FloatingPointError: where the loss stops being finite; names step, rows and last good checkpoint. A step's
                figures are read while the device does the next one, so it comes up to a step late; the weights take
                no update from a gradient that is not finite.
        """
        check_unused(self._begun, resume, self.checkpoints)
        with ExitStack() as held:
            if self.compiled:
                platform.compile_layers(self.model, self.accelerator.device, dynamic=not self.one_shape)
                held.callback(platform.restore_layers, self.model)
            begins = held.enter_context(self._claimed_folder(resume, overwrite))
            return self._train(resume, begins)

    def _train(self, resume: bool, begins: Callable[[], None]) -> Path:
        if resume and (last := checkpoint.newest(self.checkpoints)):
            self.counters, self._unread = load_training(last, self.parts), None
            self.diagnostics.resume(self.out, self.step)
        self.config.check_begun(self.step)
        begins()
        main, config = self.accelerator.is_main_process, self.config
        metrics = MetricsLog(self.out, after=self.step if self.step else -1) if main else None
        settings = {"run": to_json(self.run), "training": to_json(config)}
        log = RunLog(metrics, self.accelerator, config.tracker, self.name, settings)
        self.wrapped.train()
        ranks, told = self.accelerator.num_processes, main and logged(self.out, "evaluation", self.step)
        occasions = Occasions(config, self.callbacks, ranks, self.step or None)
        if self.step < config.steps:
            described = platform.described(self.model, self.dtype, self.compiled)
            log.write("start", self._place(), described | {"ranks": ranks})
        with Display(visible=main) as display:
            progress = TrainingProgress(display, self.name, config.steps, self.step)
            for note in notes(self.process, config, self.step if resume else None, self.compiled, self.given):
                progress.note(note)
            with Interrupts(progress.note) as interrupts:
                if first := occasions.evaluates_first(self.step, told):
                    self._evaluate(log, progress, occasions)
                # What callbacks heard of a step while it was saved does not end it there, nor after a resume.
                self.counters.ends = stops = occasions.stops() and (first or self.counters.ends)
                if first and self.step and self.evaluate:  # else the next resume forgets what they heard of it
                    self._save(occasions)
                while self.step < config.steps and not stops:
                    self._one_step(log, progress)
                    if occasions.evaluates(self.step):
                        self._report(log, progress)
                        self._evaluate(log, progress, occasions)
                    self.counters.ends = stops = occasions.stops()  # first: what a save tells callbacks ends no step
                    saves, number = occasions.saves(self.step, interrupts.signal)
                    if saves:
                        self._report(log, progress)  # what is not finite is not saved
                        self._save(occasions)
                    if number:
                        progress.note(text := f"stopped at step {self.step}, which is saved; go on with --resume")
                        end(number, text)
                self._report(log, progress)
            for reason in filter(None, (callback.stop for callback in self.callbacks)):
                progress.note(f"ends at step {self.step}: {reason}")
        if occasions.saved != self.step:
            self._save(occasions)
        log.close()
        return checkpoint.folder_of(self.checkpoints, self.step)

    def _one_step(self, log: RunLog, progress: TrainingProgress) -> None:
        self._begun, began = True, time.perf_counter()
        fit = self._refit()
        figures = self._train_step(lambda: self._report(log, progress))
        self.counters.step += 1
        self.counters.seconds += time.perf_counter() - began
        self._unread = figures, self._place(), fit
        if figures.broken:
            self._report(log, progress)

    def _report(self, log: RunLog, progress: TrainingProgress) -> None:
        """Read the figures of the step before, if nobody has yet, and tell of them.

        Raises:
            FloatingPointError: where they are not finite.
        """
        if self._unread is None:
            return
        (figures, place, fit), self._unread = self._unread, None
        step, ranks = place["step"], self.accelerator.num_processes
        metrics = figures.read(self.diagnostics, ranks, self._sum)
        nll = figures.outputs.read().nll
        check_finite(self.model, self.dtype, step - 1, self.checkpoints, metrics, figures.batch, nll)
        if fit:  # under the step that it served: a run resumed from the one before fits again
            log.write("time", place, fit)
        if step == 1 and metrics["masked_share"] > 0:
            check_start(metrics["nll"], self.model.head.choices)
        progress.step(step, loss=metrics["loss"])
        self.counters.losses.append(metrics["loss"])
        if self._logs(step):
            losses, self.counters.losses = self.counters.losses, []
            metrics["loss_mean"] = sum(losses) / len(losses)
            log.write("train", place, metrics)
        for callback in self.callbacks:
            callback.step(step, metrics)

    def _save(self, occasions: Occasions) -> None:
        card = {name: f"`{value}`" for name, value in self.run.items()}
        card["training"] = f"Step {self.step} of {self.config.steps}."
        folder = save_training(
            self.checkpoints,
            self.parts,
            self.counters,
            keep=self.config.keep_checkpoints,
            spared=occasions.spared,
            tokenizer=self.tokenizer,
            card=card,
        )
        occasions.note_saved(self.step)
        for callback in self.callbacks:
            callback.checkpoint(self.step, folder)

    def _logs(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step in (1, self.config.steps)

    def _refit(self) -> dict[str, Any]:
        """Refit the time distribution where that is due."""
        # Gradients of single rows have no loss scale: where the steps are in fp16, they are measured in fp32.
        with self._measuring(self.dtype if self.dtype != torch.float16 else None):
            return refit_time(self.process, self.masking, self.model, self.held_out, self.config.seed, *self.ranks)

    def _measuring(self, dtype: torch.dtype | None) -> AbstractContextManager[None]:
        return platform.measuring(self.model, self.accelerator.device, dtype, self.compiled)

    def _train_step(self, busy: Callable[[], None] = lambda: None) -> Figures:
        """Queue all that the device has to do for a step; `busy` is what the host does meanwhile.

        So the host waits for nothing but the scores of the forward, where the process asks for them (in fp16 for the
        norm too), and those of its own work: the device is in the backward then.
        """
        config, accelerator = self.config, self.accelerator
        # Dropout, if the backbone has any, draws from torch's generator: a function of (seed, step, rank).
        torch.manual_seed(int(noise.hashes(config.seed, self.step, accelerator.process_index)) & (1 << 62) - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        batch = self.process.draw()
        weights, normaliser = weighed(self.objective, batch, accelerator.num_processes)
        # The backward averages gradients over ranks, and the loss is a sum over them.
        scale = (accelerator.num_processes / normaliser).float()
        looks = self._logs(self.step + 1)
        needs = (*(self.process.needs or ()), "gradient") if looks else self.process.needs
        outputs = self._forward_backward(batch, weights * scale, needs)
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.wrapped.parameters())
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip_norm)
        assert norm is not None  # only DeepSpeed, which clips by itself, returns none
        late, skipped = Later(norm := whole(norm)), False
        if self.loss_scale is not None:
            skipped = self.loss_scale.skips(float(late.read()))
        busy()
        if not updates_where_finite(self.optimizer, norm) and late.read().isfinite():
            self.optimizer.step()
        if self.average is not None and not skipped:
            self.average.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        learns = self.process.needs is not None  # then the host waits for the forwards anyway, and knows their losses
        bad = outputs.broken().sum() if learns else torch.tensor(0)
        tokens, masked, bad = self._sum(torch.stack([batch.clean.attention.sum(), batch.masked.sum(), bad])).tolist()
        if learns and not bad:
            self.process.observe(outputs.scores())
        self.counters.tokens += tokens
        shown = {"learning_rate": self.learning_rate(self.step), "masked_share": masked / tokens}
        shown |= getattr(self.process, "metrics", {})
        if self.loss_scale is not None:
            shown["loss_scale"] = self.loss_scale.value
        return Figures(batch, weights, normaliser, outputs, None if skipped else late, looks, masked, shown, bad > 0)

    def _sum(self, value: Tensor) -> Tensor:
        """Sum a tensor of the host over the ranks."""
        return sum_over_ranks(self.accelerator.num_processes, value)

    def _forward_backward(self, batch: MaskedBatch, weights: Tensor, needs: tuple[str, ...] | None) -> StepOutputs:
        """Run the micro-batches. Rows without a mask cost no forward, unless layers are compiled for so many rows."""
        size, every = self.config.micro_batch_size or len(batch), self.compiled and self.one_shape
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value

        def forward(part: MaskedBatch, own: Tensor) -> MaskedOutput:
            with platform.autocast(self.accelerator.device, self.dtype):
                return self.wrapped(self.model.prepare(part, own), needs=needs, objective=self.objective)

        def backward(loss: Tensor) -> None:  # only the head's knows the loss scale, and it rounds to fp16 last
            self.accelerator.backward(loss * scale)

        waiting = partial(self.accelerator.no_sync, self.wrapped)
        return forward_backward(batch, weights, size, forward, backward, waiting, every)

    def _evaluate(self, log: RunLog, progress: TrainingProgress, occasions: Occasions) -> None:
        if self.evaluate is None:
            return
        try:
            with self.average.applied() if self.average else nullcontext(), self._measuring(self.dtype):
                self.wrapped.eval()
                results = self.evaluate(self.model, self.step == self.config.steps)
                self.wrapped.train()
            check_results(results, place := self._place())
        except Exception:  # of one rank alone, perhaps: several save together or not at all
            if self.step not in (0, occasions.saved) and self.accelerator.num_processes == 1:
                self._save(occasions)  # a resume begins with this evaluation
            raise
        log.write("evaluation", place, results)
        progress.evaluated(self.step, **shown_of(results))
        for callback in self.callbacks:
            callback.evaluation(self.step, results)

    def _place(self) -> dict[str, Any]:
        """How far the run has come, for the log."""
        done, rows = self.counters, self.process.rows  # type: ignore[attr-defined]
        return {"step": done.step, "epoch": rows.epoch, "seconds": done.seconds, "tokens": done.tokens}

    def _claimed_folder(self, resume: bool, overwrite: bool) -> AbstractContextManager[Callable[[], None]]:
        """Hold the folder against other writers; refuse one that holds anything else; give what writes the config."""
        description = {
            "unmask": __version__,
            "run": to_json(self.run),
            "training": to_json(self.config),
            "given": self.given,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            "started_in": os.path.relpath(Path.cwd(), self.out.resolve()),  # where relative paths of the run begin
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        changes = partial(self.config.changes_from, given=self.given)
        minutes, wait = self.config.rank_timeout_minutes, self.accelerator.wait_for_everyone
        return claimed_folder(self.out, description, changes, resume, overwrite, *self.ranks, minutes, wait)

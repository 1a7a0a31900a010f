"""MaskedDiffusionTrainer: every masking and objective inside `transformers.Trainer`.

    trainer = MaskedDiffusionTrainer(
        model, TrainingArguments("out", max_steps=1000), masking=ProgressiveUnmasking(), train_dataset=rows
    )
    trainer.train(resume_from_checkpoint=True)

A step's rows, its Z and its refits come from the process; optimiser, schedule, logging and callbacks are Hugging
Face's. Their checkpoints gain each rank's process state (JSON and safetensors), and hold the model as a Hugging Face
folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from unmask.batch import MaskedBatch
from unmask.config import require
from unmask.data.stream import RowStream
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.fitted_times import measured_for
from unmask.integrations.arguments import check_arguments
from unmask.kinds import kinds_checked
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.output import MaskedOutput
from unmask.objectives import Objective, RowMean
from unmask.processes import Masking
from unmask.processes.refit import fitted_time_of, refit_time
from unmask.store.checkpoint import load_state, save_state
from unmask.training.checks import check_measured, ends_in_warmup, too_short_for_pool
from unmask.training.loss_scale import LossScale
from unmask.training.micro import StepOutputs, micro_batches, weighed

_IGNORED = {"model_init", "data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"}
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_WHY = "rows, loss and evaluation come from the process, the objective and the likelihood"


class MaskedDiffusionTrainer(Trainer):
    """Hugging Face's trainer over rows that a forward process draws.

    A step draws per_device_train_batch_size · gradient_accumulation_steps · (number of processes) rows. Its loss is
    divided by the Z of all of them, so neither loss nor gradient depends on how they are split.

    Args:
        model: the denoiser, of a Hugging Face model.
        args: `max_steps` decides how long: a process decides by itself how many new rows a step takes.
        masking: config of the forward process.
        objective: weights of the masked tokens' losses.
        train_dataset: rows with `tokens` and `maskable`.
        eval_dataset: rows of `evaluate`, whose `eval_loss` is the negative ELBO in nats per token under noise that is
            the same for all models.
        held_out: rows for time distributions that measure the model (`PPOTS`): others than those that evaluate it.
        options: to `transformers.Trainer`.

    Raises:
        ValueError: for anything that could not train, as `unmask.Trainer` does; also for FSDP, DeepSpeed, several
            GPUs in one process, and an argument or option that would not do what it says (see
            `unmask.integrations.arguments`).
        FloatingPointError: from `train`, where a process that learns from losses or scores meets a loss that is not
            finite; names the rows. Under any other, transformers goes on.
    """

    @kinds_checked
    def __init__(
        self,
        model: MaskedDiffusionLM,
        args: TrainingArguments,
        *,
        masking: Masking,
        objective: Objective | None = None,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        held_out: Dataset | None = None,
        **options: Any,
    ) -> None:
        MaskedDiffusionLM.check(model)
        self.masking, self.objective = masking, objective or RowMean()
        self.objective.check(masking)
        check_arguments(args)
        ignored = _IGNORED.intersection(name for name, value in options.items() if value is not None)
        require(not ignored, f"MaskedDiffusionTrainer does not take {', '.join(sorted(ignored))}: {_WHY}")
        fp16 = args.mixed_precision == "fp16"  # where the arguments leave it open, accelerate's config decides
        if fp16:
            LossScale.check(model.parameters())
        require(args.max_steps > 0, "set TrainingArguments(max_steps=...): a process deals rows as it needs them")
        require(args.n_gpu < 2, "start one process for each GPU: `torchrun` or `accelerate launch`")
        given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "held_out": held_out}
        for name, dataset in given.items():  # those that training comes to late too
            if dataset is not None:
                model.check_rows(dataset, of=name)
        super().__init__(
            cast(Any, model), args, train_dataset=cast(Any, train_dataset), eval_dataset=eval_dataset, **options
        )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        require(
            not fp16 or self.accelerator.scaler is not None,
            "TrainingArguments(fp16=True), or accelerate's config: accelerate has no loss scale on this device, and "
            "would compute in fp32 without a word. Use bf16=True, or `unmask.Trainer`, whose precision 'fp16' works "
            "here too",
        )
        require(not sharded, "FSDP and DeepSpeed need `unmask.Trainer`: their checkpoints lack the process")
        self.model_accepts_loss_kwargs = True  # the loss is divided by Z already, not to be by the micro-batches too
        rows = RowStream(train_dataset, args.seed, args.process_index, args.world_size)
        self.process = masking.start(rows, self.get_total_train_batch_size(args), args.seed)
        self._batch: MaskedBatch
        self._runs: list[Tensor] = []
        self._outputs: list[MaskedOutput] = []
        self.held_out, measured = held_out, measured_for(fitted_time_of(self.process))
        check_measured(masking, self.process, held_out, sharded=False)
        require(
            not (fp16 and measured is not None and measured.moment == "gradient"),
            f"{masking} measures gradients row by row, which have no loss scale: use bf16, or PPOTS(moment='loss')",
        )
        if args.process_index == 0:
            for told in filter(None, (too_short_for_pool(self.process, args.max_steps), self._cold())):
                warnings.warn(told, stacklevel=3)  # past the check of kinds

    def get_train_dataloader(self) -> DataLoader:
        """Count the forwards: what they read comes from the process, in `get_batch_samples`."""
        return DataLoader(cast(Any, range(self.args.max_steps * self.args.gradient_accumulation_steps)))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Draw a step's rows of this rank, prepared in micro-batches, and Z over all ranks."""
        for _ in range(num_batches):
            next(epoch_iterator)
        model = self.accelerator.unwrap_model(self.model)
        fit = refit_time(self.process, self.masking, model, self.held_out, self.args.seed, *self._ranks)
        if fit:
            self.log({name: value for name, value in fit.items() if isinstance(value, (int, float))})
        batch = self.process.draw()
        weights, z = weighed(self.objective, batch, self.args.world_size)
        weights = weights * (self.accelerator.num_processes / z).float()  # gradients are averaged over the ranks
        parts = list(micro_batches(batch, self.args.per_device_train_batch_size))
        self._batch, self._runs, self._outputs = batch, [run for run, _ in parts], []
        return [{"batch": model.prepare(part, weights[run, : part.clean.length])} for run, part in parts], z

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ weight · nll / Z of a micro-batch; the step's last one gives the process its scores."""
        output: MaskedOutput = model(inputs["batch"], needs=self.process.needs, objective=self.objective)
        if self.process.needs is not None:
            self._outputs.append(output)
            if len(self._outputs) == len(self._runs):
                self.process.observe(StepOutputs(self._runs, self._outputs, self._batch).scores())
        return (output.loss, output) if return_outputs else output.loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The negative ELBO in nats per token, as `{prefix}_loss`."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():  # before training too, when the model is not wrapped yet
            nats = likelihood(model, rows, LikelihoodConfig(), batch_size=self.args.eval_batch_size)
        metrics = {f"{metric_key_prefix}_loss": nats.nats_per_token.value}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **options: Any) -> Any:
        """Refused: a denoiser has predictions for masks alone, and rows of a data set have none."""
        raise NotImplementedError(
            "rows have no masks to predict: `evaluate` measures their likelihood, and `unmask.sampling.generate` "
            "fills in what is maskable in them"
        )

    def _cold(self) -> str | None:
        """What to tell of a learning rate that is not up at the end; a scheduler of one's own knows best."""
        args, steps = self.args, self.args.max_steps
        if self.lr_scheduler is not None or args.lr_scheduler_type in _WITHOUT_WARMUP:
            return None
        warmup, full = args.get_warmup_steps(steps), args.learning_rate
        return ends_in_warmup(steps, warmup, full * (steps - 1) / max(1, warmup), full)

    @property
    def _ranks(self) -> tuple[int, int]:
        return self.args.process_index, self.args.world_size

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:  # every rank comes here
            return
        folder = output_dir or str(self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict)
        if self.processing_class is not None:
            cast(Any, self.processing_class).save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.accelerator.unwrap_model(self.model)
        target.load_state_dict(target.load_weights(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # another rank may not have made it yet
        save_state(self._process_file(output_dir), self.process.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            file = self._process_file(checkpoint)
            require(
                file.with_suffix(".json").is_file(),
                f"{checkpoint} holds no state of this process's rows ({file.name}): it was written by another "
                "trainer or by fewer processes",
            )
            self.process.load_state_dict(load_state(file))

    def _process_file(self, folder: str) -> Path:
        return Path(folder) / f"masking-{self.args.process_index}"

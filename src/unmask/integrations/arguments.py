"""Every field of `transformers.TrainingArguments`: it works, has nothing to act on, or is refused by name.

A field that this version does not know (of a newer transformers) is refused where it is set, so that none changes the
loss or the model, or fails to, without a word. A test goes through all fields of the installed version.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from unmask.config import require


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


WORKS = _names("""
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs neftune_noise_alpha
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    restore_callback_states_from_checkpoint full_determinism seed use_cpu ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics
    local_rank
""")
"""Fields that do what transformers says. (`max_steps` goes before `num_train_epochs`, there too.)"""

IDLE = _names("""
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns
    label_names length_column_name prediction_loss_only eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps do_train do_eval do_predict resume_from_checkpoint
""")
"""Fields about loading rows, which a process draws by itself, about gathering predictions, of which there are none,
or for scripts: they could change neither loss nor model."""

_KERNEL = "its kernels replace forwards that the masked head does not run"
_COMPILE = "compile the model's layers yourself, or use `unmask.Trainer`, whose config has `compile`"
_SHARDED = "use `unmask.Trainer`: the checkpoints of this one lack the process under it"
_METRICS = "evaluation gives the likelihood alone"
REFUSED = {
    "label_smoothing_factor": "the masked head's loss has no smoothed labels",
    "use_liger_kernel": _KERNEL,
    "liger_kernel_config": _KERNEL,
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "auto_find_batch_size": "the process is started for one batch size: lower per_device_train_batch_size, and raise "
    "gradient_accumulation_steps",
    "average_tokens_across_devices": "the loss is always divided by the Z of all devices",
    "bf16_full_eval": "evaluation runs in the precision of training",
    "fp16_full_eval": "evaluation runs in the precision of training",
    "use_cache": "a bidirectional model has no cache",
    "include_num_input_tokens_seen": "the rows come from the process, and their tokens are not counted",
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "train_sampling_strategy": "the process deals the rows",
    "data_seed": "the rows' order follows `seed`",
    "ignore_data_skip": "the process goes on where its state was saved",
    "accelerator_config": "it is about loading rows, which the process deals",
    "parallelism_config": _SHARDED,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
}
"""Fields that may only have their default, and why."""


def check_arguments(args: TrainingArguments) -> None:
    """Raise ValueError, naming it, for a field that is set and would not do what it says."""
    for field in fields(args):
        if field.name not in WORKS | IDLE and not _is_default(field, getattr(args, field.name)):
            why = REFUSED.get(field.name, "this version of unmask does not know what it does to loss and model")
            require(False, f"MaskedDiffusionTrainer does not take TrainingArguments({field.name}=...): {why}")


def _is_default(field: Any, value: Any) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    made = {"accelerator_config": AcceleratorConfig()}  # what the arguments make of None, False or ""
    return value == default or value == made.get(field.name, default) or (not value and not default)

"""What the launcher of a run may decide: devices, how many ranks, and whether they share the weights (FSDP2).

`accelerate config` and `accelerate launch` leave their answers in the environment of each process. Of these, whatever
would change the numbers of a run is the run's own: overridden with a word, or refused where it cannot be.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping

OURS = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", "no", "precision"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "1", "micro_batch_size"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "no", "compile"),
}
"""Variable: accelerate's name, the value that asks for nothing, and the setting of ours that decides instead."""

_SHARD = (
    "use FSDP2: `accelerate launch --use_fsdp --fsdp_version 2`, which shares weights, gradients and optimiser among "
    "the ranks as ZeRO's stage 3 does (with --fsdp_reshard_after_forward false as its stage 2 does)"
)
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed clips, accumulates and steps by itself", _SHARD),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM brings models and a loop of its own", _SHARD),
    "FSDP_FLOAT8_ALL_GATHER": ("FSDP's float8 all-gather rounds the weights", "leave it out"),
    "FSDP_OFFLOAD_PARAMS": ("FSDP's CPU offload takes weights and optimiser off the device", "leave it out"),
    "FSDP_IGNORED_MODULES": ("FSDP's ignored modules are not kept alike on the ranks", "leave it out"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "FSDP's activation checkpointing wraps layers anew",
        "use the run's own (--activation-checkpointing)",
    ),
}
"""Variable that asks for something: what is wrong with it, and what to use."""
_NOTHING = ("", "0", "no", "off", "false", "none")

_SPLIT = {
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism (tp_size)",
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism (cp_size)",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism (sp_size)",
}


def check_launch(environment: Mapping[str, str] | None = None) -> None:
    """Refuse what a launcher asks for and a run cannot do.

    Args:
        environment: of this process, if not that of the system.

    Raises:
        ValueError: for DeepSpeed, Megatron-LM, FSDP1, what FSDP2 does beside sharing weights, rows or layers that are
            split over ranks, or a launcher's environment that lacks a part; the message says what to use.
    """
    found = os.environ if environment is None else environment

    def asks(name: str) -> bool:
        return found.get(name, "").lower() not in _NOTHING

    for name, (why, instead) in REFUSED.items():
        if asks(name):
            raise ValueError(f"{name}={found[name]}: {why}, so a run here cannot be trained under it; {instead}")
    if asks("ACCELERATE_USE_FSDP") and (version := found.get("FSDP_VERSION", "1")) != "2":
        raise ValueError(f"FSDP_VERSION={version}: weights are shared by FSDP2 alone; set fsdp_version: 2")
    if asks("ACCELERATE_USE_PARALLELISM_CONFIG"):
        for name, meaning in _SPLIT.items():
            if found.get(name, "1") != "1":
                raise ValueError(f"{name}={found[name]}: there is no {meaning} here, each rank has rows; {_SHARD}")
    ranks, lacks = found.get("WORLD_SIZE", "1"), [name for name in ("RANK", "LOCAL_RANK") if name not in found]
    if ranks != "1" and lacks:
        raise ValueError(
            f"WORLD_SIZE is {ranks} without {' and '.join(lacks)}: start each process with `torchrun` or "
            "`accelerate launch`, or unset WORLD_SIZE to train in one"
        )


def warn_of_unused() -> None:
    """Say on the first rank what of a launcher's environment a run's own settings decide instead."""
    if os.environ.get("RANK", "0") != "0":
        return
    for name, (theirs, silent, setting) in OURS.items():
        if (value := os.environ.get(name, silent)).lower() != silent:
            warnings.warn(
                f"{theirs} {value} of accelerate's config is not used: the run's own {setting} decides", stacklevel=4
            )


def check_alone(what: str) -> None:
    """Refuse to do under a launcher of many ranks what starts processes of its own, or needs none.

    Raises:
        ValueError: with more than one rank.
    """
    if (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(f"{what} in one process, and {ranks} were started: leave out torchrun or accelerate launch")

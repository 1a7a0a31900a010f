"""Write the memory tables of docs/gpus.md: bytes that a parameter takes in training, counted in a real step.

    python scripts/make_gpus.py            # writes the tables (seconds)
    python scripts/make_gpus.py --check    # compares them with the committed page

A small model takes one step of each kind; the bytes of its weights, gradients, moments and average are counted and
divided by its parameters. Sizes and ranks are those that a reader looks for; everything else in the tables is
counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from transformers import LlamaConfig

from unmask import MaskedDiffusionLM, TrainingConfig
from unmask.training.ema import WeightAverage
from unmask.training.optimizer import adamw, parameter_groups

PAGE = Path(__file__).parents[1] / "docs" / "gpus.md"
BEGIN, END = "<!-- memory:begin, by scripts/make_gpus.py -->", "<!-- memory:end -->"
BILLIONS, RANKS = (0.1, 0.5, 1, 3, 8, 32), 8
HEADER = ("kept", "weights", "gradients", "optimiser", "average", "together")

Made = Callable[[MaskedDiffusionLM], Optimizer]


def _adamw(model: MaskedDiffusionLM) -> Optimizer:
    return adamw(model, TrainingConfig(), torch.device("cpu"))


def _momentum(model: MaskedDiffusionLM) -> Optimizer:
    return SGD(parameter_groups(model, 0.0), lr=0.1, momentum=0.9)


KINDS: dict[str, tuple[torch.dtype, Made, bool]] = {
    "fp32 weights, AdamW": (torch.float32, _adamw, False),
    "fp32 weights, AdamW, average": (torch.float32, _adamw, True),
    "fp32 weights, SGD with momentum": (torch.float32, _momentum, False),
    "bf16 weights, AdamW": (torch.bfloat16, _adamw, False),
}


def counted(dtype: torch.dtype, made: Made, averaged: bool) -> tuple[float, ...]:
    """Bytes for each parameter of: weights, gradients, optimiser's state, average."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    model = MaskedDiffusionLM.from_config(config, 63).to(dtype)
    optimizer = made(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    average = WeightAverage(model, 0.9).average if averaged else []
    parameters = list(model.parameters())
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]
    number = sum(p.numel() for p in parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    return tuple(_bytes(tensors) / number for tensors in (parameters, gradients, states, average))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    header = list(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] + ["---:"] * (len(header) - 1), *rows)]


def _gib(billions: float, per_parameter: float) -> str:
    gib = billions * 1e9 * per_parameter / 2**30
    return f"{gib:.1f}" if gib < 10 else f"{gib:.0f}"


def tables() -> str:
    """Both tables, as Markdown."""
    found = {kind: counted(*settings) for kind, settings in KINDS.items()}
    lines = ["Bytes a parameter:", ""]
    lines += _table(HEADER, ([kind, *(f"{n:g}" for n in (*parts, sum(parts)))] for kind, parts in found.items()))
    lines += ["", f"GiB by the model's size, without activations; FSDP2 over {RANKS} ranks, for each:", ""]
    columns = [f"{kind}{where}" for kind in found for where in ("", ", FSDP2")]
    rows = [
        [
            f"{billions:g} billion",
            *(_gib(billions, sum(parts) / share) for parts in found.values() for share in (1, RANKS)),
            _gib(billions, found["fp32 weights, AdamW"][0]),
        ]
        for billions in BILLIONS
    ]
    lines += _table(["parameters", *columns, "memory of the first rank's host while saving, fp32 weights"], rows)
    return "\n".join(lines)


def main() -> None:
    """Write the page's tables, or compare."""
    parser = argparse.ArgumentParser(description="memory tables of docs/gpus.md")
    parser.add_argument("--check", action="store_true", help="compare with the committed page")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    made = f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}"
    if check:
        sys.exit(0 if made == page else f"{PAGE} is out of date: run python {Path(__file__).name}")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

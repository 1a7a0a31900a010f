"""How much faster than the plain loop does `generate` fill rows, at equal tokens?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.harness import Table, interleaved, median_ms
from unmask import Decoding, MaskedDiffusionLM, RowStream, SudokuTask, TokenBatch, generate, noise
from unmask.config import to_json
from unmask.runs.config import load_model, load_run
from unmask.training.platform import autocast_dtype, keep_freed_memory

REPEATS = 4
RUN, PUZZLES = Path("runs/demo/puma"), 64
BATCH = 32
NOTE = f"""Sudoku: the model of `make demo` on {PUZZLES} unseen puzzles. Text: random weights, vocabulary 4096,
32 rows of 64 to 192 tokens with prompts of a quarter. The plain loop evaluates all rows of its batch until the last
one is done, with logits at all positions, in batches of {BATCH} or of all rows, whichever is faster; `generate` takes
{BATCH} rows at a time. "Forwards" is the plain loop's row forwards over ours."""


@torch.no_grad()
def plain(model: MaskedDiffusionLM, batch: TokenBatch, decoding: Decoding) -> tuple[Tensor, int]:
    """Decode by confidence as one would write it down; returns tokens and row forwards."""
    tokens = batch.tokens.masked_fill(batch.maskable, model.mask_token_id)
    forwards = 0
    while (masked := tokens == model.mask_token_id).any():
        logits = model.head.output(model.hidden(tokens, batch.attention)).float()
        logits[:, :, model.mask_token_id] = -torch.inf
        best, token = logits.log_softmax(-1).max(-1)
        best = best.masked_fill(~masked, -torch.inf)
        reveal = best.argsort(dim=1, descending=True, stable=True).argsort(1) < decoding.tokens_per_step
        if decoding.threshold is not None:
            reveal |= best > math.log(decoding.threshold)
        tokens = torch.where(reveal & masked, token, tokens)
        forwards += len(tokens)
    return tokens, forwards


def _plain(model: MaskedDiffusionLM, batch: TokenBatch, decoding: Decoding, size: int) -> tuple[Tensor, int]:
    parts = [plain(model, batch[start : start + size], decoding) for start in range(0, len(batch), size)]
    return torch.cat([tokens for tokens, _ in parts]), sum(forwards for _, forwards in parts)


def _ours(model: MaskedDiffusionLM, batch: TokenBatch, decoding: Decoding) -> tuple[Tensor, int]:
    made = generate(model, batch, decoding, batch_size=BATCH)
    return made.tokens, made.forwards


def _sudoku() -> tuple[MaskedDiffusionLM, TokenBatch]:
    if not RUN.is_dir():
        raise SystemExit(f"{RUN} holds no model: run `make demo` first")
    config, folder = load_run(RUN)
    assert isinstance(config.evaluation, SudokuTask)
    data = config.evaluation.load(PUZZLES)
    return load_model(folder).eval(), RowStream(data).rows(torch.arange(len(data)))


def _text(vocabulary: int = 4096, rows: int = 32) -> tuple[MaskedDiffusionLM, TokenBatch]:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(config, mask_token_id=vocabulary - 1).eval()
    number, position = torch.arange(rows), torch.arange(192)
    length = 64 + noise.hashes(0, number).remainder(129)[:, None]
    attention = position < length
    batch = TokenBatch(
        tokens=noise.hashes(1, number[:, None], position).remainder(vocabulary - 1),
        maskable=attention & (position >= length // 4),
        attention=attention,
        row=number,
        draw=torch.zeros_like(number),
        weight=torch.ones(rows),
    )
    return model, batch


@dataclass(frozen=True)
class _Case:
    name: str
    rows: Callable[[], tuple[MaskedDiffusionLM, TokenBatch]]
    decoding: Decoding
    precisions: tuple[str, ...] = ("fp32", "bf16")


CASES = (
    _Case("Sudoku, four a step", _sudoku, Decoding(tokens_per_step=4)),
    _Case("Sudoku, threshold .9", _sudoku, Decoding(threshold=0.9)),
    _Case("Sudoku, threshold .99", _sudoku, Decoding(threshold=0.99)),
    _Case("text, eight a step", _text, Decoding(tokens_per_step=8), ("fp32",)),
)


def measure(repeats: int) -> Table:
    keep_freed_memory()
    rows = []
    for case in CASES:
        model, batch = case.rows()
        count = int(batch.maskable.sum())
        for precision in case.precisions:
            if precision == "bf16" and autocast_dtype("auto", torch.device("cpu")) is None:
                continue
            found: dict[str, tuple[Tensor, int]] = {}

            def keep(name, function, *arguments, model=model, batch=batch, case=case, found=found):
                found[name] = function(model, batch, case.decoding, *arguments)

            variants = {f"plain {size}": (_plain, size) for size in sorted({min(BATCH, len(batch)), len(batch)})}
            calls = {name: lambda n=name, v=v: keep(n, *v) for name, v in {**variants, "generate": (_ours,)}.items()}
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                seconds = interleaved(calls, repeats)
            ms = {name: median_ms(values) for name, values in seconds.items()}
            best = min(variants, key=ms.__getitem__)
            same = (found["generate"][0] == found[best][0])[batch.maskable].double().mean()
            rows.append(
                {
                    "rows, decoding": case.name,
                    "precision": precision,
                    "plain, tokens/s": 1e3 * count / ms[best],
                    "generate, tokens/s": 1e3 * count / ms["generate"],
                    "ratio": ms[best] / ms["generate"],
                    "forwards": found[best][1] / found["generate"][1],
                    "same tokens, %": 100 * float(same),
                }
            )
    return Table({case.name: to_json(case.decoding) for case in CASES}, rows, NOTE)

"""unmask sample: one puzzle, solved before your eyes; or texts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import tyro
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.padding import Padding

from unmask.cli.options import chosen_device
from unmask.config import positive_int, require
from unmask.data.sudoku import is_solved
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.generative import sample_tokens, text_length, until_end
from unmask.evaluation.tasks import SudokuTask
from unmask.report.board import board, story
from unmask.runs.config import load_model, load_run, tokenizer_of
from unmask.sampling import Decoding


@dataclass(frozen=True)
class SampleOptions:
    """Options of `unmask sample`."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or one of its checkpoints."""
    number: int = 0
    """Sudoku: which puzzle of the split. Text: seed of the samples."""
    policy: str | None = None
    """Reveal policy. None: confidence for puzzles, random for texts."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, ... auto: the GPU where there is one."""
    split: Literal["test", "kaidoku"] = "test"
    """Sudoku: which puzzles."""
    pause: float = 0.15
    """Sudoku: seconds between cells."""
    prompt: str | None = None
    """Text: what each begins with; the rest is written. A run on prompts and responses puts what it has learnt to
    expect around it, such as a line break behind a question."""
    as_is: bool = False
    """Text: take the prompt as it stands."""
    texts: int = 2
    """Text: how many."""
    length: int | None = None
    """Text: tokens of each, those of the prompt included. None: 128, or less where the model reads less or its
    rows were shorter."""
    temperature: float = 1.0
    """Text: of the sampling."""
    module: tuple[str, ...] = ()
    """Modules, or .py files, of your own classes that the run names. They are imported, so their code is run."""

    def __post_init__(self) -> None:
        positive_int("texts", self.texts)
        if self.length is not None:
            positive_int("length", self.length)


def sample(words: list[str]) -> None:
    """Solve one unseen puzzle, or write texts, with a trained model: unmask sample RUN [--prompt TEXT] [options]."""
    options = tyro.cli(SampleOptions, prog="unmask sample", args=words, description=sample.__doc__)
    config, folder = load_run(options.run, options.module)
    device = chosen_device(options.device)
    tokenizer = tokenizer_of(folder)
    if tokenizer is not None:
        if options.prompt and not options.as_is and hasattr(config.data, "asked"):
            options = replace(options, prompt=cast(Any, config.data).asked(options.prompt))
        _write(tokenizer, options, folder, device, getattr(config.data, "length", None))
        return
    require(options.prompt is None, f"--prompt is for texts; the run in {options.run} trained on something else")
    if not isinstance(config.evaluation, SudokuTask):
        raise ValueError(
            f"`unmask sample` shows Sudokus and texts; the run in {options.run} trained on something else"
        )
    decoding = Decoding(options.policy or "confidence")
    _solve(replace(config.evaluation, decoding=decoding, split=options.split), options, folder, device)


def _write(
    tokenizer: TextTokenizer, options: SampleOptions, folder: Path, device: torch.device, rows: int | None
) -> None:
    """Write texts, from nothing or from a prompt, by a model that learnt rows of so many tokens."""
    decoding = Decoding(options.policy or "random", temperature=options.temperature)
    prompt = tokenizer.encode(options.prompt or "").tolist()
    missing = tokenizer.unwritten(options.prompt or "")
    require(
        not missing,
        f"--prompt {options.prompt!r}: the run's vocabulary lacks {' '.join(map(repr, missing))}; write it without",
    )
    require(bool(prompt) or not options.prompt, f"--prompt {options.prompt!r} has no token in the run's vocabulary")
    model = load_model(folder, options.module).to(device).eval()
    length = options.length or text_length(model, tokenizer, rows)
    began = time.perf_counter()
    with torch.no_grad():
        tokens, steps = sample_tokens(
            model, tokenizer, options.texts, length, decoding, options.number, prompt=prompt
        )
    seconds = time.perf_counter() - began
    for row in tokens.tolist():
        print(f"{tokenizer.first_text(row)}\n")
    made = sum(len(until_end(row, tokenizer.end_token_id)) for row in tokens[:, len(prompt) :])
    print(f"{made} tokens in {steps} steps, {seconds:.1f} s, by the model in {folder}")


def _solve(task: SudokuTask, options: SampleOptions, folder: Path, device: torch.device) -> None:
    """Solve a puzzle cell by cell."""
    console, snapshots = Console(), []
    puzzle, made = task.solve_one(
        load_model(folder, options.module).to(device),
        options.number,
        lambda step, tokens, masked: snapshots.append(tokens[0, -81:].cpu().clone()),
    )
    order, sure, answer = (x[0, -81:].cpu().numpy() for x in (made.step, made.confidence, made.tokens))
    print(f"An unseen puzzle with {int((puzzle > 0).sum())} clues, by the model in {folder}:\n")

    def frame(step: int) -> Padding:
        shown = snapshots[step].numpy()
        last = order == step
        return Padding(
            Columns([board(puzzle, shown, last), story(order, sure, answer, step)], padding=(0, 4)), (0, 2)
        )

    with Live(frame(0), console=console, refresh_per_second=30) as live:
        for step in range(len(snapshots)):
            live.update(frame(step), refresh=True)
            if console.is_terminal:
                time.sleep(options.pause)
    solved = bool(is_solved(answer, puzzle))
    console.print("\nEvery cell in the order it was revealed, with the model's confidence:")
    console.print(story(order, sure, answer, len(snapshots), lines=81))
    least = float(np.min(sure[order >= 0]))
    verdict = "[bold green]solved[/]" if solved else "[bold red]not solved[/]"
    console.print(
        f"\n{verdict}: {made.revealed} cells, least sure {least:.1%}, {made.seconds:.1f} s", highlight=False
    )

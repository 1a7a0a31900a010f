"""unmask sample: one puzzle, solved before your eyes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.padding import Padding

from unmask.data.sudoku import is_solved
from unmask.evaluation.tasks import SudokuTask
from unmask.recipes.base import load_model, load_run
from unmask.report.board import board, story
from unmask.sampling import Decoding


@dataclass(frozen=True)
class SampleOptions:
    """Options of `unmask sample`."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or one of its checkpoints."""
    number: int = 0
    """Which puzzle of the split."""
    policy: str = "confidence"
    """Reveal policy."""
    split: Literal["test", "kaidoku"] = "test"
    """Which puzzles."""
    pause: float = 0.15
    """Seconds between cells."""


def sample(words: list[str]) -> None:
    """Solve one unseen puzzle with a trained model: unmask sample RUN [--number N] [--policy NAME]."""
    options = tyro.cli(SampleOptions, prog="unmask sample", args=words, description=sample.__doc__)
    config, folder = load_run(options.run)
    if not isinstance(config.evaluation, SudokuTask):
        raise ValueError(f"`unmask sample` shows Sudokus; the run in {options.run} trained on something else")
    task = replace(config.evaluation, decoding=Decoding(options.policy), split=options.split)
    console, snapshots = Console(), []
    puzzle, made = task.solve_one(
        load_model(folder),
        options.number,
        lambda step, tokens, masked: snapshots.append(tokens[0, -81:].clone()),
    )
    order, sure = made.step[0, -81:].numpy(), made.confidence[0, -81:].numpy()
    answer = made.tokens[0, -81:].numpy()
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

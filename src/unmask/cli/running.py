"""Runs a command, and says in a line what went wrong."""

from __future__ import annotations

from importlib import import_module

from rich.console import Console
from rich.markup import escape

from unmask.cli import COMMANDS
from unmask.config import nearest
from unmask.training.console import told_as_lines
from unmask.training.ending import RankError


def run(words: list[str]) -> None:
    """Run the command that the first word names with the other words. Bad input ends with exit code 2."""
    name = words[0]
    try:
        if name not in COMMANDS:
            from unmask.recipes import RECIPES  # here alone: it takes seconds

            hint = f": it is a recipe, as in `unmask train {name}`." if name in RECIPES else ""
            raise ValueError(f"unknown command '{name}'{hint or nearest(name, COMMANDS)}")
        with told_as_lines():
            getattr(import_module(f"unmask.cli.{name}"), name)(words[1:])
    except (ValueError, OSError, FloatingPointError, RankError) as error:
        message = escape(" ".join(_said(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]unmask:[/] {message}", highlight=False)
        raise SystemExit(2) from None


def _said(error: Exception) -> str:
    """An error in words; those of the system without their number, and with the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)

"""The `unmask` command line: train, advise, compare, study, report, evaluate, sample, variance.

Recipes give defaults; every field of the resulting config can be overridden by its name. What a config
prints as is also how it is typed: --masking.time "Beta(a=2, b=1)".
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from unmask.cli.advise import advise
from unmask.cli.compare import compare
from unmask.cli.evaluate import evaluate
from unmask.cli.report import report
from unmask.cli.sample import sample
from unmask.cli.study import study
from unmask.cli.train import train
from unmask.cli.variance import variance
from unmask.config import nearest
from unmask.recipes import RECIPES
from unmask.training.ending import RankError
from unmask.training.warned import told_as_lines

COMMANDS = {
    command.__name__: command for command in (train, advise, compare, study, report, evaluate, sample, variance)
}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Bad input ends with one line on standard error and exit code 2."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(
            "usage: unmask COMMAND ...\n\n" + "\n".join(lines) + "\n\n`unmask COMMAND --help` explains its options."
        )
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            hint = f": it is a recipe, as in `unmask train {words[0]}`." if words[0] in RECIPES else ""
            raise ValueError(f"unknown command '{words[0]}'{hint or nearest(words[0], COMMANDS)}")
        with told_as_lines():
            COMMANDS[words[0]](words[1:])
    except (ValueError, OSError, FloatingPointError, RankError) as error:
        message = escape(" ".join(_said(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]unmask:[/] {message}", highlight=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        Console(stderr=True).print("\nunmask: interrupted", *([f"; {error}"] if str(error) else []), sep="")
        raise SystemExit(130) from None


def _said(error: Exception) -> str:
    """An error in words; those of the system without their number, and with the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)

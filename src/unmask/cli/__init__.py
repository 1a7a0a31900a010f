"""The `unmask` command line: train, advise, compare, study, report, evaluate, sample, variance.

Recipes give defaults; every field of the resulting config can be overridden by its name. What a config
prints as is also how it is typed: --masking.time "Beta(a=2, b=1)".
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

COMMANDS = ("train", "advise", "compare", "study", "report", "evaluate", "sample", "variance")
"""Each is a function in the module of its name, imported when it is called: help must not wait for torch."""


def main(argv: list[str] | None = None) -> None:
    """Entry point. Bad input ends with one line on standard error and exit code 2."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {_about(name)}" for name in COMMANDS]
        print(
            "usage: unmask COMMAND ...\n\n" + "\n".join(lines) + "\n\n`unmask COMMAND --help` explains its options."
        )
        raise SystemExit(0 if words else 2)
    usage = _about(words[0]).partition(": ")[2].rstrip(".") if words[0] in COMMANDS else ""
    if len(words) == 1 and usage and "RECIPE" not in usage:  # those with recipes list them
        print(f"usage: {usage}\n\n`unmask {words[0]} --help` explains its options.")
        raise SystemExit(2)
    try:
        from unmask.cli.running import run

        run(words)
    except KeyboardInterrupt as error:
        print(f"\nunmask: interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
        raise SystemExit(130) from None


def _about(name: str) -> str:
    """The first line of what a command says about itself, read without importing it."""
    module = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    command = next(part for part in module.body if isinstance(part, ast.FunctionDef) and part.name == name)
    return (ast.get_docstring(command) or "").splitlines()[0]

"""Mutation testing of the mathematics: small faults, each in a copy of the repository, that the tests should notice.

    make mutants

draws places in the modules below evenly, changes each by one of cosmic-ray's operators, runs the module's own tests,
and writes what survived to docs/mutants.md, with the reasons of scripts/mutants.toml. Names of modules as arguments
try these alone. Every verdict is kept in scripts/mutants.jsonl, of which the page is made: a mutant that was noticed
is not tried again while its module stays as it is, a survivor is, unless it has a reason.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from hypothesis import Phase, settings
from mutated import TESTS

os.environ["OMP_NUM_THREADS"] = "1"
for name in (
    "accelerate",
    "datasets",
    "matplotlib.figure",
    "peft",
    "rich.progress",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "torch",
    "transformers",
    "tyro",
):
    importlib.import_module(name)

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "src/unmask", ROOT / "docs/mutants.md"
REASONS, VERDICTS = ROOT / "scripts/mutants.toml", ROOT / "scripts/mutants.jsonl"
# What says nothing about the mathematics: another name for a variable, or a class without its decorator.
LEFT_OUT = ("core/Variable", "core/RemoveDecorator", "core/ExceptionReplacer")


@dataclass(frozen=True)
class Mutant:
    """One changed line of a module; `source` stands for the module without the change."""

    module: str
    source: str
    line: int
    was: str
    now: str
    code: str

    @property
    def change(self) -> str:
        """What it is called in the reasons and verdicts."""
        return f"{self.was} -> {self.now}"


def mutants(module: str, count: int, seed: int) -> list[Mutant]:
    """At most so many, each at another place, drawn evenly from the module's.

    The draw is a hash of the line and the operator: lines that stay keep their mutants when others change.
    """
    source, state = _source(module), _state(module)
    silent, lines, drawn, made = _silent(source), source.splitlines(), {}, []
    for name in operator_names():
        if not name.startswith(LEFT_OUT):
            operator = get_operator(name)()
            found = [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
            for occurrence, (line, column) in enumerate(found):
                if line not in silent:
                    place = f"{seed} {module} {lines[line - 1].strip()} {column}"
                    key = _digest(place), line, column
                    drawn[key] = min(drawn.get(key, ("~",)), (_digest(f"{place} {name}"), name, occurrence))
    for (_, line, _), (_, name, occurrence) in sorted(drawn.items()):
        if len(made) == count:
            break
        code = mutate_code(source, get_operator(name)(), occurrence)
        changed = [pair for pair in zip(lines, (code or "").splitlines(), strict=False) if len({*pair}) > 1]
        if code and changed and _dump(code) not in ("", _dump(source)):
            made.append(Mutant(module, state, line, changed[0][0].strip(), changed[0][1].strip(), code))
    return made


def survives(mutant: Mutant, copy: Path, seconds: float) -> bool:
    """Whether the module's tests pass with it, in a copy of the repository."""
    file = copy / "src/unmask" / f"{mutant.module}.py"
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.code, encoding="utf-8")
    try:
        return passes(mutant.module, copy, seconds)
    finally:
        file.write_text(original, encoding="utf-8")


def passes(module: str, copy: Path, seconds: float) -> bool:
    """Whether the module's tests pass within so many seconds of a core, however busy the machine.

    In a fork of this process, which has imported all that unmask imports: that takes longer than most tests.
    """
    run = multiprocessing.get_context("fork").Process(target=_test, args=(module, copy, int(seconds)))
    run.start()
    run.join(20 * seconds)  # it may also wait for nothing
    if run.is_alive():
        run.kill()
        run.join()
    return run.exitcode == 0


def _test(module: str, copy: Path, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")  # for processes that tests start
    sys.path.insert(0, str(copy / "src"))
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    # Any example that fails is enough, the same ones each time, however slow the machine is.
    phases = Phase.explicit, Phase.generate
    settings.register_profile("mutants", phases=phases, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")
    tests = [f"tests/{name}" for name in TESTS[module]]
    os._exit(pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", str(copy), *tests]))


def page(verdicts: list[dict[str, Any]], reasons: dict[str, str]) -> str:
    """What docs/mutants.md says."""
    alive = [verdict for verdict in verdicts if verdict["survived"]]
    lines = [
        "# Mutants that no test sees",
        "",
        "`make mutants` changes the mathematics at places drawn evenly from each module, one at a time, and runs the",
        f"module's own tests. Of {len(verdicts)} mutants {len(alive)} survived ({len(alive) / len(verdicts):.0%}).",
        "",
        "| module | mutants | survived | |",
        "|---|---|---|---|",
    ]
    for name in TESTS:
        own = [verdict for verdict in verdicts if verdict["module"] == name]
        states = {verdict["source"] == _state(name) for verdict in own}
        remark = "not tried yet" if not own else "" if states == {True} else "the module has changed since"
        lines.append(f"| {name} | {len(own)} | {sum(verdict['survived'] for verdict in own)} | {remark} |")
    lines += ["", "| survivor | was | became | why |", "|---|---|---|---|"]
    for verdict in alive:
        was, _, now = verdict["change"].partition(" -> ")
        place = f"{verdict['module']}:{verdict['line']}"
        lines.append(f"| {place} | {_cell(was)} | {_cell(now)} | {reasons.get(verdict['change'], '')} |")
    return "\n".join([*lines, ""])


def _cell(line: str) -> str:
    return f"`{line.replace('|', chr(92) + '|')}`"


def _dump(source: str) -> str:
    """What Python reads in it; nothing, where an operator has made no Python of it."""
    with suppress(SyntaxError):
        return ast.dump(ast.parse(source))
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def _state(module: str) -> str:
    """Stands for what a module does: comments and layout leave it."""
    return _digest(_dump(_source(module)))


class Verdicts:
    """Which mutants survived, in a file of one line of JSON for each.

    Attributes:
        found: verdicts by module and change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = {(v["module"], v["change"]): v for v in map(json.loads, lines)}

    def settled(self, mutant: Mutant, reasons: dict[str, str]) -> bool:
        """Whether it was noticed, or survived for a known reason, in the module as it is."""
        verdict = self.found.get((mutant.module, mutant.change), {})
        same = verdict.get("source") == mutant.source
        return same and (not verdict["survived"] or mutant.change in reasons)

    def add(self, mutant: Mutant, survived: bool) -> None:
        """Keep a verdict."""
        what = {"module": mutant.module, "source": mutant.source, "line": mutant.line, "change": mutant.change}
        self.found[mutant.module, mutant.change] = what | {"survived": survived}
        self.save()

    def keep(self, module: str, made: list[Mutant]) -> None:
        """Forget a module's mutants but these."""
        names = {mutant.change for mutant in made}
        self.found = {key: v for key, v in self.found.items() if key[0] != module or key[1] in names}
        self.save()

    def save(self) -> None:
        """Write the file."""
        ordered = sorted(self.found.values(), key=lambda v: (v["module"], v["line"], v["change"]))
        self.path.write_text("".join(json.dumps(verdict) + "\n" for verdict in ordered), encoding="utf-8")


def _silent(source: str) -> set[int]:
    """Lines of annotations, messages and checks of types: what no law of the mathematics can be about."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        spans: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            spans = [a.annotation for a in (*arguments.args, *arguments.kwonlyargs)] + [node.returns]
        elif isinstance(node, ast.AnnAssign) and node.value is None:
            spans = [node.annotation]
        elif isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
            spans = [node]
        for span in spans:
            if span is not None and hasattr(span, "lineno"):
                found |= set(range(span.lineno, (span.end_lineno or span.lineno) + 1))
    return found


def main() -> None:
    """Draw, try and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--each", type=int, default=12, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    parser.add_argument(
        "--seconds", type=float, default=200, help="of a core, after which a mutant counts as noticed"
    )
    options = parser.parse_args()
    unknown = set(options.modules) - set(TESTS)
    if unknown:
        parser.error(f"unknown modules {sorted(unknown)}")
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    verdicts = Verdicts(VERDICTS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        for name in filter(None, tracked.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        for module in options.modules or TESTS:
            made = mutants(module, options.each, options.seed)
            verdicts.keep(module, made)
            left = [mutant for mutant in made if not verdicts.settled(mutant, reasons)]
            if left and not passes(module, copy, options.seconds):
                raise SystemExit(
                    f"the tests of {module} fail, or take over {options.seconds:g} s of a core, without any change"
                )
            for mutant in left:
                alive = survives(mutant, copy, options.seconds)
                verdicts.add(mutant, alive)
                print(f"{'SURVIVED' if alive else 'noticed '} {module}:{mutant.line} {mutant.change}", flush=True)
            PAGE.write_text(page(list(verdicts.found.values()), reasons), encoding="utf-8")


if __name__ == "__main__":
    main()

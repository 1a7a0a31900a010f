"""Mutation testing of the mathematics: small faults, each in a copy of the repository, that the tests should notice.

    make mutants

draws places in the modules below evenly, changes each by one of cosmic-ray's operators, runs the module's own tests,
and writes what survived to docs/mutants.md, with the reasons of scripts/mutants.toml. Names of modules as arguments
draw from these alone, and write nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE, REASONS = ROOT / "src/unmask", ROOT / "docs/mutants.md", ROOT / "scripts/mutants.toml"
CHAINS = [f"processes/test_{name}.py" for name in ("chain_noise", "progressive_stages", "progressive", "pool")]
TESTS = {
    "batch": ["test_batch.py", "test_objectives.py"],
    "masks": ["test_masks.py", "testing/test_enumeration.py"],
    "times": ["test_times.py", "processes/test_refit.py"],
    "objectives": ["test_objectives.py", "testing/test_enumeration.py"],
    "reweighted": ["test_reweighted.py"],
    "token_rates": ["test_token_rates.py"],
    "policies": ["test_policies.py", "processes/test_guides.py"],
    "schedules": ["test_schedules.py"],
    "noise": ["test_noise.py"],
    "processes/chains": CHAINS,
    "processes/progressive": [*CHAINS, "processes/test_progressive_ranks.py"],
    "processes/blocks": ["processes/test_blockwise.py", *CHAINS],
    "processes/blockwise": ["processes/test_blockwise.py", "processes/test_blockwise_ranks.py"],
    "processes/independent": ["processes/test_independent.py", "testing/test_enumeration.py"],
    "processes/ppots": ["processes/test_ppots.py"],
    "models/head": ["models/test_head.py", "models/test_head_wrapped.py"],
}
# What says nothing about the mathematics: another name for a variable, or a class without its decorator.
LEFT_OUT = ("core/Variable", "core/RemoveDecorator", "core/ExceptionReplacer")


@dataclass(frozen=True)
class Mutant:
    """One changed line of a module."""

    module: str
    line: int
    was: str
    now: str
    code: str


def mutants(module: str, count: int, seed: int) -> list[Mutant]:
    """At most so many, each at another place, drawn evenly from the module's."""
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    silent = _silent(source)
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in operator_names():
        if not name.startswith(LEFT_OUT):
            operator = get_operator(name)()
            found = [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
            for occurrence, start in enumerate(found):
                if start[0] not in silent:
                    places.setdefault(start, []).append((name, occurrence))
    draw, made = random.Random(f"{seed} {module}"), []
    for place in draw.sample(sorted(places), len(places)):
        if len(made) == count:
            break
        name, occurrence = draw.choice(places[place])
        code = mutate_code(source, get_operator(name)(), occurrence)
        changed = [
            pair for pair in zip(source.splitlines(), (code or "").splitlines(), strict=False) if len({*pair}) > 1
        ]
        if code and changed and _dump(source) != _dump(code):
            made.append(Mutant(module, place[0], changed[0][0].strip(), changed[0][1].strip(), code))
    return made


def survives(mutant: Mutant, copy: Path, seconds: float) -> bool:
    """Whether the module's tests pass with it, in a copy of the repository."""
    file = copy / "src/unmask" / f"{mutant.module}.py"
    original = file.read_text(encoding="utf-8")
    tests = [f"tests/{name}" for name in TESTS[mutant.module]]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    file.write_text(mutant.code, encoding="utf-8")
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.write_text(original, encoding="utf-8")
    return run.returncode == 0


def page(tried: dict[str, int], survivors: list[Mutant], reasons: dict[str, str]) -> str:
    """What docs/mutants.md says."""
    every = sum(tried.values())
    lines = [
        "# Mutants that no test sees",
        "",
        "`make mutants` changes the mathematics at places drawn evenly from each module, one at a time, and runs the",
        f"module's own tests. Of {every} mutants {len(survivors)} survived ({len(survivors) / every:.0%}).",
        "",
        "| module | mutants | survived |",
        "|---|---|---|",
        *(f"| {name} | {n} | {sum(s.module == name for s in survivors)} |" for name, n in tried.items()),
        "",
        "| survivor | was | became | why |",
        "|---|---|---|---|",
        *(
            f"| {s.module}:{s.line} | {_cell(s.was)} | {_cell(s.now)} | {reasons.get(f'{s.was} -> {s.now}', '')} |"
            for s in survivors
        ),
        "",
    ]
    return "\n".join(lines)


def _cell(line: str) -> str:
    return f"`{line.replace('|', chr(92) + '|')}`"


def _dump(source: str) -> str:
    return ast.dump(ast.parse(source))


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
        elif isinstance(node, ast.Raise | ast.JoinedStr):
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
    parser.add_argument("--seconds", type=float, default=300, help="after which a mutant counts as noticed")
    options = parser.parse_args()
    unknown = set(options.modules) - set(TESTS)
    if unknown:
        parser.error(f"unknown modules {sorted(unknown)}")
    tried, survivors = {}, []
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        keep_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=keep_out)
        for module in options.modules or TESTS:
            made = mutants(module, options.each, options.seed)
            tried[module] = len(made)
            for mutant in made:
                alive = survives(mutant, copy, options.seconds)
                survivors += [mutant] * alive
                print(
                    f"{'SURVIVED' if alive else 'noticed '} {module}:{mutant.line} {mutant.was} -> {mutant.now}",
                    flush=True,
                )
    print(f"{len(survivors)} of {sum(tried.values())} survived")
    if not options.modules:
        PAGE.write_text(page(tried, survivors, reasons), encoding="utf-8")


if __name__ == "__main__":
    main()

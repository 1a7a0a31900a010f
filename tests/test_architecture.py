"""The house: who may import whom, and how long a file may get. docs/decisions/0009 says why the order is this one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "unmask"

# From the ground up: a package imports from itself and from those before it, for type checking too.
ORDER = (
    "mathematics",  # the modules at the top of src/unmask
    "data",
    "models",
    "processes",
    "sampling",
    "store",
    "evaluation",
    "parts",
    "report",
    "training",
    "runs",
    "recipes",
    "testing",
    "integrations",
    "cli",
)
NEVER = {("training", "evaluation"), ("training", "report")}  # what trains is not what measures
MATHEMATICS = {"batch", "config", "distributed", "kinds", "masks", "noise", "objectives", "policies", "reweighted"}
MATHEMATICS |= {"lazy", "schedules", "times", "fitted_times", "token_rates"}
LONGEST = 400

MODULES = {
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(SOURCE.rglob("*.py"))
}


def _package(module: str) -> str | None:
    """The package of a module; None for the facade, whose names are everybody's. `python -m unmask` is the cli."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    if parts[1] == "__main__":
        return "cli"
    return parts[1] if (SOURCE / parts[1]).is_dir() else "mathematics"


def _imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and module of everything of ours that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            found = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for name in found:
            if name == "unmask.__version__" or name.split(".")[0] != "unmask":
                continue
            while name not in MODULES:
                name = name.rpartition(".")[0]
            yield node.lineno, name


def _arrows() -> dict[tuple[str, str], list[str]]:
    """The imports from one package to another, as "file:line"."""
    found: dict[tuple[str, str], list[str]] = {}
    for module in MODULES:
        here = _package(module)
        for line, name in _imports(module) if here else ():
            there = _package(name) or "the facade"
            if here != there:
                found.setdefault((here, there), []).append(f"{module}:{line}")
    return found


def test_every_package_has_its_place():
    assert {_package(module) for module in MODULES} - {None} == set(ORDER)
    assert {file.stem for file in SOURCE.glob("*.py")} - {"__init__", "__main__"} == MATHEMATICS


def test_imports_run_downwards():
    wrong = {
        f"{here} -> {there}": places
        for (here, there), places in _arrows().items()
        if there not in ORDER or ORDER.index(there) > ORDER.index(here) or (here, there) in NEVER
    }
    assert not wrong


def test_no_two_modules_import_each_other():
    """Within packages too: no module reaches itself."""
    direct = {module: {name for _, name in _imports(module)} - {module} for module in MODULES}
    for package, file in MODULES.items():  # a package that only hands on the names of its modules is no knot
        if file.name == "__init__.py":
            direct[package] = {name for name in direct[package] if not name.startswith(f"{package}.")}
    reached: dict[str, set[str]] = {}
    for module in MODULES:
        seen, waiting = set(), list(direct[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += direct[name]
        reached[module] = seen
    assert [module for module, seen in reached.items() if module in seen] == []


@pytest.mark.parametrize("module", ["unmask.evaluation.likelihood", "unmask.batch"])
def test_the_reader_of_imports_reads(module):
    """What the tests above rest on: it finds imports that are there."""
    found = {name for _, name in _imports(module)}
    assert ("unmask.batch" in found) == (module != "unmask.batch")


def test_files_are_short_enough_to_read():
    long = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    assert {module: lines for module, lines in long.items() if lines > LONGEST} == {}


UNPICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules whose reading runs what was written."""
LOADS = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "torch.hub.load"}


def _unpickles(source: str) -> Iterator[str]:
    """What of a module's text would read pickles: imports, `torch.load`, objects of ranks, numpy's object arrays."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in UNPICKLE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLE:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in LOADS or called.endswith(("_object", "_object_list")):
                yield called
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            yield from [f"{node.arg}=True"] * (ast.unparse(node.value) == "True")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_unpickles(module):
    assert list(_unpickles(MODULES[module].read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "torch.load(path, weights_only=True)",
        "dist.all_gather_object(found, mine)", "dist.broadcast_object_list([1])", "accelerate.utils.gather_object(x)",
        "np.load(file, allow_pickle=True)", "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_unpickles_is_seen(line):
    assert list(_unpickles(line))

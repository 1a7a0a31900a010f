"""The package as it is installed: complete, importable without a network, and with the names it promises."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import unmask
from unmask.lazy import homes

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unmask"

# Every attempt to reach a network ends the process with an error, import time included.
OFFLINE = """
import sys

def refuse(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        if event != "socket.connect" or isinstance(details[1], tuple):
            raise RuntimeError(f"network: {event} {details}")

sys.addaudithook(refuse)
"""
USE = """
import importlib, pkgutil, pathlib
import unmask
from unmask.cli import main
for module in pkgutil.walk_packages(unmask.__path__, "unmask."):
    importlib.import_module(module.name)
small = {"model.layers": 1, "model.width": 16, "model.heads": 2, "steps": 2, "data.limit": 9, "batch-size": 4,
         "evaluation.puzzles": 5, "evaluation.final-puzzles": 5, "threads": 1}
main(["train", "sudoku", "--out", sys.argv[1], *(f"--{name}={value}" for name, value in small.items())])
print(pathlib.Path(unmask.__file__).parent)
"""


def _use(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE + USE, str(folder / "run")],
        cwd=folder,
        env={**variables, "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
    )


def test_guard_against_the_network_works():
    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE + "import socket; socket.create_connection(('192.0.2.1', 80))"],
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: network: socket." in ended.stderr


def test_import_of_every_module_and_a_training_run_touch_no_network(tmp_path):
    ended = _use(tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").is_file()


def test_public_names_exist_and_are_documented():
    assert sorted(unmask.__all__, key=str.lower) == sorted(set(unmask.__all__), key=str.lower)
    for name in unmask.__all__:
        assert getattr(unmask, name).__doc__, name


def test_import_loads_nothing_heavy_until_a_name_is_used():
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib', 'scipy', 'tyro'}"
    script = f"import sys, unmask; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    script += "; assert unmask.Bell().mean == 0.5; assert not {'transformers', 'datasets'} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_help_of_the_command_line_loads_nothing_heavy():
    script = """
import sys
from unmask.cli import main
try:
    main(["--help"])
finally:
    assert not {'torch', 'transformers', 'datasets', 'scipy', 'numpy'} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "  train      Train one model: " in ended.stdout


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["report", "nowhere"], {"transformers", "datasets", "accelerate", "sympy", "pandas"}),
        (["train", "sudoku"], set()),  # the control: this one needs them
    ],
)
def test_a_report_needs_no_model_and_no_rows(words, heavy, tmp_path):
    script = f"""
import sys
from unmask.cli import main
try:
    main({[*words, "--out", str(tmp_path), "--nothing"]})
except SystemExit:
    print(sorted({{'transformers', 'datasets', 'accelerate', 'sympy', 'pandas'}} - set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == str(sorted(heavy)), ended.stderr


def test_packages_hand_on_what_their_stubs_name():
    stubs = sorted(SOURCE.rglob("__init__.pyi"))
    assert len(stubs) > 1
    for stub in stubs:
        package = importlib.import_module(".".join(stub.parent.relative_to(SOURCE.parent).parts))
        assert package.__all__ == sorted(homes(str(stub)))
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            package.nothing  # noqa: B018


@pytest.mark.parametrize("stub", sorted(SOURCE.rglob("__init__.pyi")), ids=lambda stub: stub.parent.name)
def test_a_package_shows_its_names_and_has_its_modules_at_hand(stub):
    """As after `import unmask.training` alone, where nothing has imported either."""
    package = ".".join(stub.parent.relative_to(SOURCE.parent).parts)
    modules = sorted(module.name for module in pkgutil.iter_modules([str(stub.parent)]) if module.name[0] != "_")
    assert len(modules) > 5
    script = f"""
import {package}
print(sorted(set({package}.__all__) - set(dir({package}))))
print([name for name in {modules} if getattr({package}, name).__name__ != "{package}." + name])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["[]", "[]"], ended.stderr


def test_a_name_that_there_is_not_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'Bel'"):
        unmask.Bel  # noqa: B018


def test_every_public_name_is_one_of_the_module_that_the_stub_names():
    assert set(unmask.__all__) <= set(dir(unmask))
    for name in unmask.__all__:
        assert getattr(unmask, name).__module__.startswith("unmask."), name


def test_every_folder_of_modules_is_a_package():
    for file in SOURCE.rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), file


@pytest.mark.slow
def test_wheel_holds_all_subpackages_and_data_and_works_from_a_bare_folder(tmp_path):
    """Built by the back end of the development extras, without the package index."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("unmask-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    wanted = {str(Path("unmask") / p.relative_to(SOURCE)) for p in SOURCE.rglob("*") if p.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted - inside == set()
    assert {"unmask/data/files/sudoku.npz", "unmask/data/files/kaidoku.npz"} <= inside
    assert "unmask/data/files/KAIDOKU_LICENSE.txt" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in inside)
    puzzles = [p.stat().st_size for p in (tmp_path / "site" / "unmask" / "data" / "files").glob("*.npz")]
    assert 0 < sum(puzzles) < 4 << 20

    ended = _use(tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "site" / "unmask")


def test_training_loads_nothing_that_only_figures_and_judges_need():
    """A wrong number need not wait for them."""
    needless = "{'matplotlib', 'scipy.stats', 'scipy.integrate', 'tensorboard'}"
    script = f"import sys, unmask.cli.train; assert not {needless} & set(sys.modules), {needless} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_packages_are_there_when_they_are_named():
    code = "import sys, unmask; assert 'torch' not in sys.modules; unmask.recipes.sft; unmask.runs.config.load_run"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing_such'"):
        unmask.nothing_such  # noqa: B018

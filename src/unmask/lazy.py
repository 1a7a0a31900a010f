"""Packages whose names are loaded when they are first used: a command must not wait for what it does not need."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def homes(init: str) -> dict[str, str]:
    """Names that a package hands on, and their modules: the imports of the stub __init__.pyi beside its __init__.py.

    Type checkers read the same stub.

    Args:
        init: the package's `__file__`.
    """
    stub = ast.parse(Path(init).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        name.name: str(node.module) for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names
    }


def lazily(package: str, init: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package that hands on the names of its stub.

    Its modules are at hand too, as `unmask.training.callbacks`, whether or not anything has imported them.

    Args:
        package: its `__name__`.
        init: its `__file__`.
    """
    home, own = homes(init), vars(sys.modules[package])

    def load(name: str) -> Any:
        if name in home:
            own[name] = value = getattr(import_module(home[name]), name)  # asked for once
            return value
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return sorted(home), load, lambda: sorted({*own, *home})

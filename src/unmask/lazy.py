"""Packages whose names are loaded when they are first used: a command must not wait for what it does not need."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
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


def loader(package: str, home: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package with these names."""

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(home[name]), name)

    return load

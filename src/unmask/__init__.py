"""unmask: train masked diffusion models faster and more stably, and measure it on your own data.

The public names are listed in __init__.pyi, and each is loaded when it is first used, as the packages inside are:
`import unmask` alone loads neither torch nor transformers nor datasets.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOME = {name.name: node.module for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        globals()[name] = value = getattr(import_module(str(_HOME[name])), name)
        return value
    if not name.startswith("_") and find_spec(f"unmask.{name}") is not None:
        return import_module(f"unmask.{name}")
    raise AttributeError(f"module 'unmask' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""unmask: train masked diffusion models faster and more stably, and measure it on your own data.

The public names are listed in __init__.pyi, and each is loaded when it is first used, as the packages inside are:
`import unmask` alone loads neither torch nor transformers nor datasets.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from unmask.lazy import homes, loader

__version__ = "0.1.0"

_HOME = homes(__file__)
_load = loader(__name__, _HOME)

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME and not name.startswith("_") and find_spec(f"unmask.{name}") is not None:
        return import_module(f"unmask.{name}")
    return _load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Changes of a run's config, as the arms of a study name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from unmask.config import nearest, require
from unmask.runs.config import RunConfig

Change = Mapping[str, Any] | Callable[[RunConfig], RunConfig]


def changed(config: Any, change: Mapping[str, Any]) -> Any:
    """A config with other values of some fields, which are named with dots: {"training.batch_size": 32}.

    Raises:
        ValueError: for a field that is not there, with the nearest one.
    """
    known = [f.name for f in fields(config)] if is_dataclass(config) else []
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in change.items():
        name, _, rest = path.partition(".")
        require(name in known, f"{type(config).__name__} has no field '{name}'{nearest(name, known)}")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            plain = is_dataclass(getattr(config, name)) and isinstance(value, str | int | float)
            require(
                not plain, f"{type(config).__name__}.{name} takes a config, as {getattr(config, name)}, got {value!r}"
            )
            values[name] = value
    for name, inner in nested.items():
        values[name] = changed(values.get(name, getattr(config, name)), inner)
    return replace(cast(Any, config), **values)

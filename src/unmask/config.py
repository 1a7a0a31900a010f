"""Configs are frozen dataclasses; this turns them into JSON and back, and explains wrong names."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any


def to_json(value: Any) -> Any:
    """Turn a config into plain JSON values: a dataclass becomes {"type": its name, ...its fields}.

    A reveal policy of ours becomes its name, any other function "module:name". Raises TypeError for anything
    that could not be read back.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        if value in importlib.import_module("unmask.policies").POLICIES.values():
            return value.__qualname__
        return f"{value.__module__}:{value.__qualname__}"
    raise TypeError(f"{value!r} cannot be part of a saved config")


def from_json(value: Any) -> Any:
    """Rebuild what `to_json` wrote. Types are looked up among unmask's public names, nothing else is run.

    Lists become tuples, as configs are immutable. A config with a user's own policy cannot be rebuilt: its
    "module:name" says where the function was, and nothing is imported from there.

    Raises:
        ValueError: for a type that unmask does not have, or fields that it does not take.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    items = {key: from_json(item) for key, item in value.items()}
    if "type" not in items:
        return items
    name = items.pop("type")
    kind = _config_type(name)
    if kind is None:
        raise ValueError(f"unmask has no config type '{name}': the file comes from another version or program")
    try:
        return kind(**items)
    except TypeError as error:
        raise ValueError(f"the saved {name} does not fit this version of unmask: {error}") from None


def _config_type(name: Any) -> Any:
    """The public config type of that name, or None."""
    for module in ("unmask", "unmask.recipes"):
        kind = getattr(importlib.import_module(module), str(name), None)
        if isinstance(kind, type) and is_dataclass(kind):
            return kind
    return None


def completed(saved: Any) -> Any:
    """Return what `to_json` wrote with the fields that its types have gained since, at their defaults."""
    if isinstance(saved, list):
        return [completed(item) for item in saved]
    if not isinstance(saved, dict):
        return saved
    found = {key: completed(item) for key, item in saved.items()}
    kind = _config_type(saved.get("type"))
    for field in fields(kind) if kind else ():
        if field.default is not MISSING:
            found.setdefault(field.name, to_json(field.default))
        elif field.default_factory is not MISSING:
            found.setdefault(field.name, to_json(field.default_factory()))
    return found


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """List the fields in which two JSON configs differ, as "a.b: 1 -> 2"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            found += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix}: {old} -> {new}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" where a known name is close or begins so, and the list of known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1) or [x for x in known if name and x.startswith(name)]
    return (f"; did you mean '{close[0]}'?" if close else ".") + f" Known: {', '.join(known)}"


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError with the nearest known name unless `name` is known."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {what} '{name}'{nearest(str(name), known)}")


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def positive_int(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def parse(text: str, base: type) -> Any:
    """Read a config from the text it prints as, e.g. "Beta(a=2, b=1)" or just "Uniform".

    Args:
        text: a public name of unmask, with literal arguments or nested configs; nothing else is evaluated.
        base: what the result must be an instance of.

    Raises:
        ValueError: for an unknown name (with the nearest one), or arguments that the type does not take.
    """
    public = vars(importlib.import_module("unmask"))
    known = {n: k for n, k in public.items() if isinstance(k, type) and issubclass(k, base) and k is not base}

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = known.get(node.func.id) or (public.get(node.func.id) if node is not root else None)
            if not (isinstance(kind, type) and is_dataclass(kind)):
                raise ValueError(f"unknown {base.__name__} '{node.func.id}'{nearest(node.func.id, known)}")
            arguments = [build(a) for a in node.args]
            named = {k.arg or "**": build(k.value) for k in node.keywords}
            try:
                return kind(*arguments, **named)
            except TypeError as error:
                raise ValueError(f"{text}: {error}") from None
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"{text}: {ast.unparse(node)} is neither a literal nor a config of unmask") from None

    try:
        root = ast.parse(text.strip() if "(" in text else f"{text.strip()}()", mode="eval").body
        value = build(root)
    except SyntaxError:
        raise ValueError(f"cannot read {text!r}; write it as Name or Name(field=value, ...)") from None
    if not isinstance(value, base):
        raise ValueError(f"{text!r} is no {base.__name__}; known: {', '.join(known)}")
    return value

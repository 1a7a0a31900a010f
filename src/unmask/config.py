"""Configs are frozen dataclasses; this turns them into JSON and back, and explains wrong names."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

from unmask.kinds import KNOWN, check_when_made

_OURS = KNOWN  # what a saved config may name without saying where it is


def ours(*things: Any, settings: bool = True) -> None:
    """Enter config types and reveal policies of this library in the table of what saved configs may name barely.

    Modules call it for what they define, so that the table is closed: it holds what they entered and nothing else.
    The fields of settings are checked against their annotations whenever some are made; records of results are not.
    """
    for thing in things:
        if settings and is_dataclass(thing) and isinstance(thing, type):
            check_when_made(thing)
    _OURS.update({thing.__name__: thing for thing in things})


def _our(name: str) -> Any:
    """What the table holds under a name, or None. Public names are loaded when used, so the table fills on demand."""
    public = importlib.import_module("unmask")
    if name not in _OURS and name in public.__all__:
        getattr(public, name)
    for module in ("unmask.parts", "unmask.runs.config", "unmask.evaluation.advice"):  # what is not public
        if name not in _OURS:
            importlib.import_module(module)
    return _OURS.get(name)


def to_json(value: Any) -> Any:
    """Turn a config into plain JSON values: a dataclass becomes {"type": its name, ...its fields}.

    Types and functions of this library go by their bare name, all others by "module:name". Raises TypeError for
    anything that could not be read back.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": _name_of(type(value))} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Real):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Path):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return _name_of(value)
    raise TypeError(f"{value!r} cannot be part of a saved config")


def modules_of(value: Any) -> set[str]:
    """Names of the modules, other than unmask's, whose classes and functions a config holds."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = (modules_of(getattr(value, f.name)) for f in fields(value))
        return set().union(*inside, modules_of(type(value)))
    if isinstance(value, (Mapping, list, tuple)):
        return set().union(*map(modules_of, value.values() if isinstance(value, Mapping) else value))
    named = _name_of(value) if callable(value) and hasattr(value, "__qualname__") else ""
    return {named.partition(":")[0]} if ":" in named else set()


def from_json(value: Any, modules: Iterable[str | ModuleType] = ()) -> Any:
    """Rebuild what `to_json` wrote. Lists become tuples, as configs are immutable.

    Types are looked up among those of this library. What a user has named "module:name" is built only where the
    caller passes that module: nothing in a file decides what is imported or run.

    Args:
        value: plain JSON values.
        modules: modules whose own dataclasses and functions the file may name: themselves, their names, or their
            .py files. They are imported.

    Raises:
        ValueError: for a type that is neither, or fields that it does not take.
    """
    return _Reader({_module_name(m): m for m in map(_imported, modules)}).read(value)


class _Reader:
    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.modules = modules

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.read(item) for item in value)
        if isinstance(value, str) and value.partition(":")[0] in self.modules:
            return self._named(value) or value
        if not isinstance(value, dict):
            return value
        items = {key: self.read(item) for key, item in value.items() if key != "type"}
        if "type" not in value:
            return items
        kind = self._type(str(value["type"]))
        try:
            return kind(**items)
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # a part of another kind
            raise ValueError(f"the saved {kind.__name__} does not fit this version of it: {error}") from None

    def _type(self, name: str) -> type:
        kind = self._named(name) if ":" in name else _our(name)
        if isinstance(kind, type) and is_dataclass(kind):
            return kind
        module = name.partition(":")[0]
        if ":" not in name:
            raise ValueError(f"unmask has no config type '{name}': the file comes from another version or program")
        if module in self.modules:
            raise ValueError(f"the file names {name}, but that module defines no such dataclass")
        raise ValueError(
            f"the file names {name}, which is not of unmask. It is imported, and its code run, only if you say so: "
            f"--module {module}, or modules=['{module}'] from Python"
        )

    def _named(self, name: str) -> Any:
        """What one of the modules itself defines under a name; None for anything else."""
        module, _, path = name.partition(":")
        found: Any = self.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        own = module in self.modules and getattr(found, "__module__", None) == self.modules[module].__name__
        return found if own else None


def _name_of(thing: Any) -> str:
    """How a saved config names a class or function."""
    if thing.__module__.split(".")[0] == "unmask" and (isinstance(thing, type) or _OURS.get(thing.__name__) is thing):
        return thing.__name__
    module = sys.modules.get(thing.__module__)
    return f"{thing.__module__ if module is None else _module_name(module)}:{thing.__qualname__}"


def _module_name(module: ModuleType) -> str:
    """The name that a module is imported by, also while it runs as a script."""
    if module.__name__ != "__main__":
        return module.__name__
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file else "__main__"


def _imported(module: str | ModuleType) -> ModuleType:
    """Import what the user named: a module, seen from the working folder too, or a .py file."""
    if isinstance(module, ModuleType):
        return module
    file = Path(module) if module.endswith(".py") else None
    main = sys.modules["__main__"]
    if (file.stem if file else module) == _module_name(main):  # a script that opens its own runs
        return main
    place = str(file.parent.resolve() if file else Path.cwd())
    sys.path.insert(0, place)
    try:
        return importlib.import_module(file.stem if file else module)
    except ImportError as error:
        raise ValueError(f"cannot import the module {module}: {error}") from error
    finally:
        sys.path.remove(place)


def _loaded_type(name: Any) -> Any:
    """The config type of that name if its module is loaded already, or None."""
    module, _, path = str(name).rpartition(":")
    if not module:
        return _OURS.get(path)
    main = sys.modules["__main__"]
    kind = getattr(main if _module_name(main) == module else sys.modules.get(module), path, None)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def completed(saved: Any) -> Any:
    """Return what `to_json` wrote with the fields that its types have gained since, at their defaults."""
    if isinstance(saved, list):
        return [completed(item) for item in saved]
    if not isinstance(saved, dict):
        return saved
    found = {key: completed(item) for key, item in saved.items()}
    kind = _loaded_type(saved["type"]) if "type" in saved else None
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


def meant(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" where a known name is close or begins so, else nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1) or [x for x in known if name and x.startswith(name)]
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """What is `meant`, and the list of known names."""
    known = list(known)
    return (meant(name, known) or ".") + f" Known: {', '.join(known)}"


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
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


_OWN = ". Classes of your own are handed over from Python alone (docs/extending.md)"


def parse(text: str, base: type | tuple[type, ...], kind_name: str | None = None) -> Any:
    """Read a config from the text it prints as, e.g. "Beta(a=2, b=1)" or just "Uniform".

    Args:
        text: name of a config type of unmask, with literal arguments or nested configs; nothing else is evaluated.
        base: what the result must be an instance of, one of them.
        kind_name: what messages call it; the name of `base` if that is one type.

    Raises:
        ValueError: for an unknown name (with the nearest one), or arguments that the type does not take.
    """
    types = {name: kind for name, kind in _OURS.items() if isinstance(kind, type) and is_dataclass(kind)}
    known = {name: kind for name, kind in types.items() if issubclass(kind, base)}
    called = kind_name or getattr(base, "__name__", "config")

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            among, what = (known, called) if node is root else (types, "config")
            require(node.func.id in among, f"unknown {what} '{node.func.id}'{nearest(node.func.id, among)}{_OWN}")
            kind = among[node.func.id]
            arguments = [build(a) for a in node.args]
            named = {k.arg or "**": build(k.value) for k in node.keywords}
            for name in named:
                check_name(f"field of {kind.__name__}", name, (field.name for field in fields(kind) if field.init))
            try:
                return kind(*arguments, **named)
            except TypeError as error:
                raise ValueError(f"{text}: {error}") from None
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):  # the latter of a dictionary whose keys cannot be any
            raise ValueError(f"{text}: {ast.unparse(node)} is neither a literal nor a config of unmask") from None

    try:
        root = ast.parse(text.strip() if "(" in text else f"{text.strip()}()", mode="eval").body
        value = build(root)
    except SyntaxError:
        raise ValueError(f"cannot read {text!r}; write it as Name or Name(field=value, ...)") from None
    if not isinstance(value, base):
        raise ValueError(f"{text!r} is no {called}; known: {', '.join(known)}")
    return value

"""What is of the wrong kind is named where it is given, with what was expected: by the annotations themselves."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

KNOWN: dict[str, Any] = {}  # config types and policies of this library by name: `unmask.config.ours` enters them
_WORDS = {int: "an integer", float: "a finite number", str: "text", bool: "True or False", types.NoneType: "None"}
_RAW = (TypeError, AttributeError, LookupError, ArithmeticError)  # what a value of another kind leads to
_MODEL_AND_DATA = {"model", "batch", "dataset", "rows", "train_dataset"}
_PLAIN = (str, Real, tuple, list, types.NoneType)
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
F = TypeVar("F", bound=Callable[..., Any])


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation says.

    Numbers are finite. Integers pass as numbers, lists as tuples, text as paths, and what has a protocol's members
    as the protocol.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if origin in (tuple, list, Sequence):
        return isinstance(value, (tuple, list)) and _items_fit(value, inner if origin is tuple else (*inner, ...))
    if origin is type:
        return isinstance(value, type)
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint is None:
        return value is None
    kind: Any = origin or hint
    if kind is Any or not isinstance(kind, type):  # Any, and what this cannot tell
        return True
    if issubclass(kind, PathLike):  # pyright: ignore[reportGeneralTypeIssues]
        return isinstance(value, (str, PathLike))
    if _is_protocol(kind):
        return not isinstance(value, type) and not _lacks(value, kind)
    return isinstance(value, kind)


def _items_fit(value: Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    if not kinds:
        return True
    if kinds[-1] is ...:
        return all(fits(item, kinds[0]) for item in value)
    return len(value) == len(kinds) and all(map(fits, value, kinds))


def _is_protocol(kind: type) -> bool:
    return getattr(kind, "_is_protocol", False)


def _lacks(value: Any, protocol: type) -> list[str]:
    """Members of a protocol that a value, or a class, does not have."""
    ours = [base for base in protocol.__mro__ if base not in (object, Protocol) and _is_protocol(base)]
    members = {name for base in ours for name in vars(base) if not name.startswith("_")}
    return sorted(name for name in members if not hasattr(value, name))


def check_kind(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError, saying what was expected, unless the value is of the kind that an annotation says.

    A number that is not finite is a ValueError, as are other numbers that something cannot be, and so is a text or
    number that is none of those listed.
    """
    if not fits(value, hint):
        endless = isinstance(value, float) and not math.isfinite(value)
        unlisted = any(type(value) is type(one) for one in _listed(hint))
        kind = ValueError if endless or unlisted else TypeError
        raise kind(f"{name} must be {_expected(hint)}, got {_got(value, hint)}")


def _alternatives(hint: Any) -> Iterator[Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin not in (Union, types.UnionType, Annotated):
        yield hint
        return
    for one in inner[:1] if origin is Annotated else inner:
        yield from _alternatives(one)


def _listed(hint: Any) -> list[Any]:
    """The values that an annotation lists one by one."""
    return [value for one in _alternatives(hint) if get_origin(one) is Literal for value in get_args(one)]


def _expected(hint: Any) -> str:
    every = list(_alternatives(hint))
    return " or ".join(dict.fromkeys(_words(one) for one in every if not (one is int and float in every)))


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list, Sequence):
        each = _expected(inner[0]) if inner and (origin is not tuple or inner[-1] is ...) else ""
        several = f"({', '.join(map(_expected, inner))})" if inner and not each else ""
        return f"a tuple with {each} in each place" if each else f"a tuple {several}".strip()
    kind: Any = origin or hint
    if not isinstance(kind, type):
        return str(hint)
    if kind in (Callable, type):
        return "a function" if kind is not type else "a class"
    if issubclass(kind, PathLike):  # pyright: ignore[reportGeneralTypeIssues]
        return "a path"
    if issubclass(kind, Mapping):
        return "a dict"
    made = next((one.__name__ for one in KNOWN.values() if _stands_for(one, kind) and _can_be_bare(one)), "")
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return f"{article} {kind.__name__}" + (f" such as {made}()" if made and made != kind.__name__ else "")


def _stands_for(kind: Any, hint: Any) -> bool:
    """Whether instances of a class are of the kind that a class or protocol says."""
    if not (isinstance(kind, type) and isinstance(hint, type)):
        return False
    return not _lacks(kind, hint) if _is_protocol(hint) else issubclass(kind, hint)


def _can_be_bare(kind: type) -> bool:
    return is_dataclass(kind) and all(
        f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind)
    )


def _got(value: Any, hint: Any) -> str:
    """The value, and what was meant where that is plain: a class or its name in place of an instance."""
    named: Any = next(
        (kind for name, kind in KNOWN.items() if isinstance(value, str) and name.lower() == value.lower()), value
    )
    meant = any(_stands_for(named, one) for one in _alternatives(hint))
    said = f"the class {value.__name__}" if isinstance(value, type) else _short(value)
    return f"{said}: write {named.__name__}({'' if _can_be_bare(named) else '...'})" if meant else said


def _short(value: Any) -> str:
    """The value as it prints, or its type where that is long."""
    said = repr(value)
    return said if len(said) <= 80 and "\n" not in said else f"a {type(value).__name__}"


@functools.cache
def _hints(thing: Any) -> dict[str, Any]:
    return get_type_hints(thing, include_extras=True)


def check_fields(config: Any, kind: type, but: tuple[type, ...] = ()) -> None:
    """Raise TypeError for the first field of a dataclass, as far as they are set, that holds what it cannot be.

    Fields that hold something of `but` are passed over, unless what they may hold is listed.
    """
    for name in (field.name for field in fields(kind) if field.name in vars(config)):
        value, hint = getattr(config, name), _hints(kind)[name]
        if _listed(hint) or not isinstance(value, but):
            check_kind(f"{kind.__name__}: {name}", value, hint)


def check_when_made(kind: type) -> None:
    """Have the fields of a dataclass checked whenever one is made.

    What its own `__post_init__` says of plain values (text, numbers, tuples) comes first, but for those of which an
    annotation lists all (`Literal`).
    """
    made = kind.__init__
    if hasattr(made, "checks_kinds"):
        return

    @functools.wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            made(self, *args, **kwargs)
        except (ValueError, *_RAW) as error:
            check_fields(self, kind, but=_PLAIN if isinstance(error, ValueError) else ())
            raise
        check_fields(self, kind)

    checked.checks_kinds = True  # type: ignore[attr-defined]
    kind.__init__ = checked  # type: ignore[method-assign]


def kinds_checked(function: F) -> F:
    """Have a function's arguments checked against its annotations; model and data say themselves what to do."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            plain = signature.parameters[name].kind not in _SEVERAL
            if plain and name in hints and name not in _MODEL_AND_DATA:
                check_kind(name, value, hints[name])
        return function(*args, **kwargs)

    return cast(F, checked)

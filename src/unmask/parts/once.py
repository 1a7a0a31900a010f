"""Methods of configs whose results are kept: rows and tokenizers are made once for all who ask."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Made = TypeVar("Made")


def once(method: Callable[[Any], Made]) -> Callable[[Any], Made]:
    """A method without arguments that runs once for each object, which does not change."""
    place = f"_{method.__name__}"

    @wraps(method)
    def kept(self: Any) -> Made:
        if place not in vars(self):
            vars(self)[place] = method(self)  # as functools.cached_property does: the object may be frozen
        return vars(self)[place]

    return kept

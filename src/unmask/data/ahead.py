"""Work that a thread does while the model computes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Something that will be needed, made in a thread from now on.

    The thread ends by itself when it is made, wanted or not, and a process that ends waits for that.

    Args:
        work: makes it. Nothing else may touch meanwhile what it changes.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._made: list[T] = []
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._made.append(work())
            except BaseException as error:  # raised where the result is wanted
                self._error = error

        self._thread = Thread(target=run, name="unmask-ahead")
        self._thread.start()

    def wait(self) -> None:
        """Return once the thread has ended, however."""
        self._thread.join()

    def result(self) -> T:
        """What was made; waits for it. Raises what went wrong in making it, with the traceback of the thread.

        Raises:
            RuntimeError: in a process that was forked meanwhile: threads stay behind.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        if not self._made:
            raise RuntimeError("rows were being fetched when this process was forked: make its stream after the fork")
        return self._made[0]

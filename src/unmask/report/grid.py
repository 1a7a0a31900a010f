"""A table as plain text: rich on the terminal, Markdown in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """Cells under a title.

    Attributes:
        title: what is shown.
        head: names of the columns.
        rows: the cells of each row; the first one names it, and where it is empty that of the row above does. Without
            rows there is only the note.
        note: what must be known to read it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> Table | Text:
        """For the terminal. Words stand on the left, numbers on the right."""
        if not self.rows:
            return Text(f"{self.title}\n{self.note}")
        table = Table(
            title=escape(self.title), caption=escape(self.note), title_justify="left", caption_justify="left"
        )
        for name, left in zip(self.head, self.words, strict=True):
            table.add_column(escape(name), justify="left" if left else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """A section of a page."""
        note = [self.note, ""] if self.note and self.rows else []
        return "\n".join([f"## {self.title}", "", *note, self.table if self.rows else f"{self.note}\n"])

    @property
    def table(self) -> str:
        """The cells alone, in Markdown."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

        rules = line(["---" if left else "---:" for left in self.words])
        return "\n".join([line(self.head), rules, *map(line, self.rows)]) + "\n"

    @property
    def words(self) -> list[bool]:
        """Which columns hold no number."""
        return [
            all(not cell.lstrip("+-~")[:1].isdigit() for cell in column) for column in zip(*self.rows, strict=True)
        ]

    @property
    def groups(self) -> list[tuple[str, list[list[str]]]]:
        """The rows under each name, without it."""
        found: list[tuple[str, list[list[str]]]] = []
        for name, *rest in self.rows:
            if name or not found:
                found.append((name, []))
            found[-1][1].append(rest)
        return found

"""What configs make once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from unmask.config import to_json
from unmask.parts.once import once


@dataclass(frozen=True)
class Counted:
    start: int = 0

    @once
    def made(self) -> list[int]:
        """A list of its own."""
        return [self.start]


def test_a_result_is_made_once_for_each_object_and_anew_for_a_changed_one():
    one = Counted(1)
    assert one.made() is one.made()
    assert (one.made(), replace(one, start=2).made()) == ([1], [2])
    assert Counted(1).made() is not one.made()


def test_what_is_kept_is_no_part_of_the_config():
    one, saved = Counted(1), to_json(Counted(1))
    one.made()
    assert (one, to_json(one), [f.name for f in fields(one)]) == (Counted(1), saved, ["start"])
    assert Counted.made.__doc__ == "A list of its own."

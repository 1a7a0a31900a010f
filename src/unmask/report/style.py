"""How figures look: one palette for files and for the page, where it follows light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context

# Each colour by day and by night. The page replaces those by day with CSS variables of these names.
PALETTE = {
    "paper": ("#fefefe", "#14181e"),
    "ink": ("#1c2530", "#e5eaf0"),
    "faint": ("#5c6774", "#a2aebb"),
    "grid": ("#d9dee4", "#333d48"),
    "control": ("#66707c", "#9fabb8"),
    "arm-0": ("#0a66c2", "#6db3ff"),
    "arm-1": ("#c4560c", "#ffa066"),
    "arm-2": ("#0d8060", "#4fd2a4"),
    "arm-3": ("#8a42c6", "#c89dff"),
    "arm-4": ("#b9284a", "#ff8a9f"),
    "arm-5": ("#097e92", "#4ecbdf"),
    "arm-6": ("#7c6a05", "#dcc552"),
    "arm-7": ("#b53389", "#ff94d4"),
    "good": ("#0b7a4b", "#5fd79c"),
    "bad": ("#b3261e", "#ff8b82"),
}
INK, FAINT, GRID, PAPER = (PALETTE[name][0] for name in ("ink", "faint", "grid", "paper"))
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "sD^vPX*p"

styled = rc_context(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": FAINT,
        "axes.facecolor": PAPER,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlesize": "medium",
        "figure.facecolor": PAPER,
        "figure.titlesize": "medium",
        "font.size": 11,
        "grid.color": GRID,
        "legend.edgecolor": GRID,
        "legend.frameon": False,
        "savefig.facecolor": PAPER,
        "svg.fonttype": "none",
        "text.color": INK,
        "text.parse_math": False,  # names of arms are names, whatever signs they hold
        "xtick.color": FAINT,
        "ytick.color": FAINT,
    }
)
"""Decorates what makes or saves a figure."""


@dataclass(frozen=True)
class ArmStyle:
    """How the lines of an arm are drawn; arms can be told apart without colour too.

    Attributes:
        name: of the colour in `PALETTE`.
        dash: matplotlib's line style.
        marker: matplotlib's marker.
    """

    name: str
    dash: str
    marker: str

    @property
    def colour(self) -> str:
        """By day."""
        return PALETTE[self.name][0]


def arm_styles(arms: Sequence[str], control: str = "") -> dict[str, ArmStyle]:
    """A style for each arm by its place in the study; the control's is grey."""
    found, others = {}, [arm for arm in arms if arm != control]
    count = sum(name.startswith("arm-") for name in PALETTE)
    for i, arm in enumerate(others):
        found[arm] = ArmStyle(f"arm-{i % count}", _DASHES[i // count % 4], _MARKERS[i % len(_MARKERS)])
    return {arm: found.get(arm, ArmStyle("control", "-", "o")) for arm in arms}

"""Figures inside a page: SVG whose text is text, whose colours are the page's, and which says what it shows."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from unmask.report.style import PALETTE

_COLOURS = {day: f"var(--{name})" for name, (day, _) in PALETTE.items()}
_REFERENCE = re.compile(r"#([\w.-]+)")


def svg_of(figure: Figure, name: str) -> str:
    """A figure as SVG; ids within depend on the name alone, so the same figure gives the same bytes."""
    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # A canvas by itself draws once; savefig draws twice.
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    return written.getvalue()


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, 150 pixels an inch."""
    written = io.BytesIO()
    figure.dpi = 150
    FigureCanvasAgg(figure).print_png(written)
    return written.getvalue()


def inline(svg: str, name: str, title: str, description: str) -> Markup:
    """Write a figure as an <svg> element of an HTML page.

    Args:
        svg: what `svg_of` gave for a figure drawn in the colours of `PALETTE`.
        name: unique on the page; ids within begin with it.
        title: what it shows, for those who do not see it.
        description: more of that: what was found.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = {
        found
        for node in root.iter()
        for key, value in node.attrib.items()
        if _local(key) in ("href", "clip-path")
        for found in _REFERENCE.findall(value)
    }
    for node in root.iter():
        node.tag = _local(node.tag)
        node.attrib = {
            _local(key): _tidied(value, name, used)
            for key, value in node.attrib.items()
            if key != "id" or value in used
        }
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        told = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        told.text = text
        root.insert(place, told)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # it is escaped by ElementTree


def _local(name: str) -> str:
    """A name without its namespace, which HTML needs none of."""
    return name.rpartition("}")[2]


def _tidied(value: str, name: str, used: set[str]) -> str:
    """An attribute with the page's colours and font, ids of its own, and no more digits than can be seen."""
    value = re.sub(r"font-family:[^;]*;?\s*", "", value)
    for colour, variable in _COLOURS.items():
        value = value.replace(colour, variable)
    value = value if value not in used else f"{name}-{value}"
    value = _REFERENCE.sub(lambda found: f"#{name}-{found[1]}" if found[1] in used else found[0], value)
    return re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)

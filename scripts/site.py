"""What `mkdocs build` adds to docs/: references from the code, decisions, and files outside docs/ that pages link.

Nothing of a reference is typed by hand: the command line's help is asked of the commands, and the lists of names are
those that the package exports. mkdocs calls the functions `on_*` (mkdocs.yml, hooks).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)]*)?\))")  # of a file, not of an address
FACADE = "unmask"
MODULES = ("unmask.training", "unmask.data", "unmask.runs.config", "unmask.runs.study", "unmask.testing")
MODULES += ("unmask.runs.advise", "unmask.integrations", "unmask.evaluation.likelihood", "unmask.evaluation.harness")
RECIPES = ("sudoku", "sft", "text", "sequences", "rows")


def on_config(config: Any) -> Any:
    """Put every decision into the menu."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    config.nav.append({"Decisions": [f"decisions/{path.name}" for path in decisions]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the references, and the files outside docs/ that pages link."""
    pages = {"reference/commands.md": commands(), "reference/config.md": configs(), "reference/api.md": api()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for target in outside(page):
            if (name := _copy_of(target)) not in files.src_uris:
                files.append(File.generated(config, name, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to the copies."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", here, found[2]))
        if target.startswith("docs/"):
            return found[0]
        return found[1] + posixpath.relpath(_copy_of(target), here or ".") + found[3]

    return LINK.sub(moved, markdown)


def outside(page: Path) -> Iterator[str]:
    """The files outside docs/ that a page links, as paths from the root of the repository."""
    here = page.parent.relative_to(ROOT)
    for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
        target = posixpath.normpath(posixpath.join(here.as_posix(), link))
        if not target.startswith("docs/"):
            yield target


def _copy_of(target: str) -> str:
    """Where the site has a file from outside docs/; as text, so that it is shown as it is."""
    return f"repository/{target}" + ("" if Path(target).suffix in (".png", ".svg", ".html") else ".txt")


def commands() -> str:
    """The page of the command line."""
    from unmask.cli import COMMANDS, main

    os.environ |= {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}

    def told(*words: str) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*words, "--help"])
        return f"```text\n{said.getvalue().strip()}\n```\n"

    parts = ["# The command line\n", told()]
    for name in COMMANDS:
        parts += [f"## unmask {name}\n", told(name)]
        if name == "train":
            for recipe in RECIPES:
                parts += [f"### unmask train {recipe}\n", told(name, recipe)]
    return "\n".join(parts)


def configs() -> str:
    """The page of what a run's config holds."""
    text = (
        "# Configs\n\nA run is a `RunConfig`: data, model, masking, objective, training and evaluation. A recipe "
        "returns one; `config.json` holds one; every field is an option of the command line.\n"
    )
    return text + _entries(_configs())


def _configs() -> list[Any]:
    """The classes that configs are made of, and the maskings by name."""
    import unmask.parts
    from unmask.runs.config import RunConfig
    from unmask.training import TrainingConfig

    return [RunConfig, TrainingConfig, *(getattr(unmask.parts, name) for name in unmask.parts.__all__)]


def api() -> str:
    """The page of public names."""
    text = (
        "# API\n\n`import unmask` gives the names of the first part; the others come from the modules that head "
        "them.\nWhat a config is made of is in [Configs](config.md).\n"
    )
    known = _configs()
    for name in (FACADE, *MODULES):
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and key[0] != "_"
        ]
        entries = [getattr(module, key) for key in public]
        new = [entry for entry in entries if entry not in known and hasattr(entry, "__qualname__")]
        known += new
        text += f"\n## {name}\n" + _entries(new)
    return text


def _entries(objects: Iterable[Any]) -> str:
    """An entry of mkdocstrings for each object, where it is defined."""
    return "\n".join(f"\n::: {thing.__module__}.{thing.__qualname__}" for thing in objects) + "\n"

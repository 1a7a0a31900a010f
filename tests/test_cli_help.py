"""Every option of every command says what it is."""

import contextlib
import io
import re

import pytest

from unmask.cli import COMMANDS, main
from unmask.recipes import RECIPES

OF_RECIPES = ("train", "compare", "advise")
ASKED = [(name,) for name in COMMANDS if name not in OF_RECIPES] + [
    *(("train", recipe) for recipe in RECIPES),
    *((name, "sudoku") for name in OF_RECIPES[1:]),
]


def unexplained(text):
    """Options of a help text with nothing but a type and a default."""
    parts = re.split(r"(?m)^[│ ] *(--[a-z][\w.-]*)", re.sub(r"[╭╰╮╯─]", " ", text))[1:]
    found = []
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        body = body.replace("│", " ")
        about = re.sub(r"\((default|required|repeatable|optional).*", "", body, flags=re.DOTALL)
        about = re.sub(r"^.*?(\n|\s{2,})", "", about + "\n", count=1, flags=re.DOTALL)  # the type
        if not re.search(r"[A-Za-z]{2,}", about):
            found.append(name)
    return found


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_every_option_is_explained(words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert re.search(r"(?m)^[│ ] *--[a-z]", said.getvalue()) or words == ("evaluate",)  # whose kinds have their own
    assert unexplained(said.getvalue()) == []


def test_an_option_without_words_is_found():
    """The control."""
    text = "│ --nested.rates INT        (default: 4)  │\n│ --jobs {None}|INT  Runs at a time.  │\n"
    assert unexplained(text) == ["--nested.rates"]

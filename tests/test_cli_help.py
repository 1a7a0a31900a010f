"""What commands say of themselves: every option, its default and what it is, and what a bare command takes."""

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from unmask.cli import COMMANDS, main
from unmask.recipes import RECIPES, sudoku

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


def _typed(prefix: str, value) -> dict[str, object]:
    """Every option of a run with its default."""
    found: dict[str, object] = {}
    for f in fields(value):
        here = getattr(value, f.name)
        name = f"{prefix}.{f.name}" if prefix else f.name
        if is_dataclass(here) and f.name in ("data", "model", "masking", "evaluation", "decoding"):
            found |= _typed(name, here)
        elif f.name == "training":
            found |= _typed("", here)
        elif f.name != "recipe":
            found["--" + name.replace("_", "-")] = here
    return found


@pytest.mark.parametrize("masking", ["standard", "puma"])
def test_help_names_every_field_with_its_default(command, monkeypatch, masking):
    monkeypatch.setenv("COLUMNS", "80")  # one column of panels: wider, tyro sets them side by side
    code, out, _ = command("train", "sudoku", "--masking", masking, "--help")
    assert code == 0
    assert "--masking NAME" in out
    assert "--out PATH" in out
    assert "--resume" in out
    options = _typed("", sudoku(masking))
    assert len(options) > 30
    for option, default in options.items():
        described = out[out.index(option + " ") if option + " " in out else out.index(option + ",") :]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert re.match(rf".*?\(default: '?{re.escape(shown)}'?\)", described), (option, described[:200])
        explained = described[: described.index("(default:")].removeprefix(option).split()
        assert len(explained) > 2, f"{option} has no explanation"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_bare_command_lists_the_commands(command, words):
    code, out, _ = command(*words)
    assert code == (0 if words else 2)
    assert all(name in out for name in ("train", "compare", "sample"))


@pytest.mark.parametrize("name", ["study", "report", "evaluate", "sample", "variance"])
def test_bare_command_of_folders_says_at_once_what_it_takes(name):
    """Without waiting for torch."""
    script = f"import sys; from unmask.cli import main; sys.argv = ['unmask', '{name}']\ntry: main()\n"
    script += "finally: assert not {'torch', 'tyro', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"usage: unmask {name} ")


@pytest.mark.parametrize("words", [["report", "--title", "x"], ["evaluate", "--rows", "3"]])
def test_a_command_of_folders_that_is_given_none_says_so(command, words):
    code, out, err = command(*words)
    assert code == 2
    assert f"unmask {words[0]} " in out + err


@pytest.mark.parametrize("name", ["train", "compare"])
def test_command_without_a_recipe_lists_the_recipes(command, name):
    assert "sudoku" in command(name)[1]
    assert command(name)[0] == 2
    assert command(name, "--help")[0] == 0

"""The pages: links lead somewhere, each page is in the menu, its code runs, and what it lists is what there is."""

from __future__ import annotations

import posixpath
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from datasets import concatenate_datasets
from transformers import LlamaConfig, LlamaForCausalLM

import unmask
from unmask.cli import COMMANDS
from unmask.cli.options import masked_as, named_arm, take_option
from unmask.config import parse
from unmask.objectives import Objective
from unmask.recipes import RECIPES
from unmask.store.checkpoint import MANIFEST
from unmask.store.metrics import read_metrics

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as git hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_of_a_table_stand_below_its_head(page):
    """Without head and rule, and a blank line before them, a row is shown as it is typed."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for table in re.findall(r"((?:^.*\n)?)((?:^\|.*\n?)+)", text, re.MULTILINE):
        before, rows = table[0].strip(), table[1].splitlines()
        assert not before or before.startswith("<!--"), before
        assert len(rows) > 2, rows
        assert re.fullmatch(r"[|: -]+", rows[1]), rows[:2]


def test_every_page_is_in_the_menu():
    menu = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = [name for name in menu if name.startswith("reference/")]  # by scripts/site.py
    assert sorted(set(menu) - set(made)) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page.parent.name != "decisions"
    )
    assert made == [name for name in made if f'"{name}":' in (ROOT / "scripts" / "site.py").read_text()]
    assert len(menu) == len(set(menu))


@pytest.mark.parametrize("page", sorted((DOCS / "papers").glob("*.md")), ids=lambda page: page.stem)
def test_pages_of_papers_answer_the_same_questions(page):
    headings = re.findall(
        r"(?m)^## (.*)$", page.read_text().replace("they say", "it says").replace("switch them", "switch it")
    )
    decided = "What could not be reproduced, and what would decide it"
    assert headings == ["What it says", "How to switch it on", "What we measured", decided]


def test_decisions_have_a_number_each():
    names = sorted(page.name for page in (DOCS / "decisions").glob("*.md"))
    assert [name[:4] for name in names] == [f"{i:04}" for i in range(1, len(names) + 1)]
    for name in names:
        assert (DOCS / "decisions" / name).read_text().startswith(f"# {int(name[:4])}. ")


@pytest.mark.parametrize("page", ["own_loop.md", "own_model.md"])
def test_code_of_a_page_runs(page):
    """Each block that needs no download; what it makes is a loss, or a model."""
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    local = [block for block in blocks if "from_pretrained" not in block]
    assert local
    for block in local:
        names: dict = {"__name__": page}
        exec(block, names)
        if "loss" in names:
            assert torch.isfinite(names["loss"])
        else:
            tokens = torch.randint(0, 26, (2, 8))
            hidden = torch.ones(2, 8, dtype=torch.bool)
            assert names["model"].predict(tokens, hidden, hidden).shape == (16, 28)


def test_formats_name_what_a_run_leaves(trainer):
    out = trainer(evaluate=lambda model, last: {"loss": 1.0}, evaluate_every=3).train().parents[1]
    words = set(re.findall(r"`([^`\n]+)`", (DOCS / "formats.md").read_text()))
    by_masking = {"refills", "mean_stage", "fast_forwarded", "stages", "pool", "rows"}
    for line in read_metrics(out):
        assert line["kind"] in words
        if line["kind"] in ("start", "train"):
            assert set(line) - by_masking <= words, line["kind"]
    for path in out.rglob("*"):
        name = path.name
        if path.is_file() and path.parent.name not in ("model", "ema", "tracker"):
            assert name in words, name
    assert MANIFEST in words


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's blocks, in words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^ {4}(unmask .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{page.stem}-{' '.join(words)}") for page in PAGES for words in commands(page)]
)
def test_a_command_that_a_page_shows_is_one(words):
    """It has a folder to write to, options that there are, and maskings that go with their objectives."""
    name, of = words[1], words[2]
    assert name in COMMANDS
    if name not in ("train", "compare", "advise"):
        return
    assert "--out" in words, "needs a folder"
    recipe = RECIPES[of]
    arms, rest = take_option(words[3:], "--arms")
    maskings, rest = take_option(rest, "--masking")
    objectives, rest = take_option(rest, "--objective")
    for text in [*(named_arm(arm)[1] for arm in arms), *maskings]:
        run = masked_as(recipe, text)
        (parse(objectives[0], Objective) if objectives else run.objective).check(run.masking)


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the format requires
    assert cited["version"] == unmask.__version__
    assert cited["authors"] == [{"name": "The unmask authors"}]


def test_links_out_of_the_pages_have_files_within_the_repository():
    """scripts/site.py copies them; a link above the repository would have nothing to copy."""
    for page in DOCS.rglob("*.md"):
        for link in LINK.findall(prose(page)):
            if "://" not in link:
                here = page.parent.relative_to(ROOT).as_posix()
                assert not posixpath.normpath(posixpath.join(here, link)).startswith("..")


def test_the_loop_of_the_readme_runs(short_rows):
    """With a tiny model, its rows and an optimiser in place of the reader's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.partition("## PUMA in your own loop")[2].partition("```python\n")[2].partition("```")[0]
    assert "step(model)" in code
    config = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    names: dict = {
        "hugging_face_model": LlamaForCausalLM(config),
        "mask_token_id": 8,
        "dataset": concatenate_datasets([short_rows] * 8),
        "steps": 3,
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
    }
    exec(code, names)
    assert torch.isfinite(names["loss"])
    assert all(weight.grad is not None for weight in names["model"].parameters() if weight.requires_grad)

"""report.html: what it shows, that it needs nothing but itself, and that no name in the records becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from unmask.evaluation.curve import Curve, Point
from unmask.evaluation.decomposition import VARIANCE, Decomposition, load_variance, save_variance
from unmask.evaluation.estimate import Estimate
from unmask.evaluation.results import RECORDS, Results
from unmask.evaluation.speedup import ONE_SEED
from unmask.report.advice import advice_grid, advice_lines
from unmask.report.page import FIGURES, PAGE, write_page
from unmask.report.study import verdicts
from unmask.report.style import PALETTE
from unmask.report.svg import inline
from unmask.runs.advise import read_advice

VOID = {"meta", "input", "path", "use", "rect"}
EVIL = "<script>alert(1)</script>$x^2$"
LOG = {
    "by_rate": {"loss": [0.5, 1.0, None], "gradient": [3.0, 2.0, None]},
    "gradient_norm": [{"step": 1.0 + i, "quantiles": [0.5, 1.0, 2.0]} for i in range(10)],
    "fits": [{"step": 5, "density": [1.0, 2.0, 1.0]}, {"step": 9, "density": [0.5, 2.0, 1.5]}],
}
TRACE = {
    "start": ["4", None, None],
    "steps": [[[1, "5"]], [[2, "</script>"]]],
    "truth": ["4", "5", "6"],
    "columns": 3,
    "exact": True,
}


def record(arm, seed, *values, steps=300, log=None, trace=None, role="compare", **changes):
    curve = [
        {
            "step": steps * i // (len(values) - 1),
            "seconds": 2.5 * i,
            "tokens": 5000 * i,
            "solved": value,
            "loss": 2.0 - value,
            "interval": [value - 0.05, value + 0.05],
            "strata": {"easy": {"solved": value / 2, "interval": [0.0, 1.0]}},
        }
        for i, value in enumerate(values)
    ]
    made = {"study": "s", "control": "standard", "arm": arm, "seed": seed, "steps": steps, "role": role}
    config = {"data": {"type": "TextData", "source": "data/letters.txt"}}
    made |= {"config": config, "training": {"batch_size": 8, "seed": seed, "steps": steps}, "parameters": 7}
    made |= {"curve": curve, "finals": {}, "provenance": {"torch": "9.9", "device": "a processor"}}
    return made | {"log": log or {}, "trace": trace} | changes


def bare(*records):
    """Without what is drawn twice or thrice: pages of these are made in a moment."""
    kept = ("step", "seconds", "solved", "interval")
    return [r | {"curve": [{key: point[key] for key in kept} for point in r["curve"]]} for r in records]


BARE = bare(record("standard", 1, 0.0, 0.3, 0.6, 0.6), record("puma", 1, 0.0, 0.6, 0.9, 0.9))
FULL = [
    record(arm, seed, 0.0, *(share + 0.01 * (seed % 3) for share in shares), log=LOG, trace=TRACE)
    for seed in range(5)
    for arm, shares in (("standard", (0.3, 0.6, 0.6)), (EVIL, (0.6, 0.9, 0.9)))
]


class Page(HTMLParser):
    """What stands on a page: elements with their attributes, text, and whether all are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of records that have everything, and its folder."""
    out = tmp_path_factory.mktemp("full")
    found = Decomposition(*(Estimate(value, value, value) for value in (3.0, 2.0, 1.0, 6.0)), signal=1.0)
    save_variance(out / "variance" / "variance.json", {"standard": {"loss": found, "gradient": found}}, {})
    write_page(Results.of(FULL), out)
    return Page((out / PAGE).read_text()), out


def test_verdict_comes_first_in_the_words_of_the_summary(full):
    page, _ = full
    (sentence,) = verdicts(Results.of(FULL))
    for part in sentence.partition(": ")[2].split("; "):
        what, _, word = part.rpartition(": ")
        assert f"{what} {word}" in page.words
    keys = [attributes["id"] for attributes in page.all("section")]
    assert keys[0] == "verdict"
    assert keys[-1] == "protocol"
    order = ["verdict", "curves", "targets", "ends", "rates", "variance", "densities", "noise", "replay", "spread"]
    assert [key for key in keys if key in order] == order
    assert "s: letters.txt" in page.words  # the data, not the study alone
    assert "a processor" in page.words


def test_page_needs_nothing_but_itself(full):
    page, out = full
    html = (out / PAGE).read_text()
    assert len(html) < 400_000
    assert "://" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert page.open == []


def test_ids_are_unique_and_references_lead_somewhere(full):
    page, out = full
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    html = (out / PAGE).read_text()
    named = set(re.findall(r'(?:href|for)="#?([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    for value in re.findall(r'aria-labelledby="([^"]+)"', html):
        named |= set(value.split())
    assert named - set(ids) == set()


def test_no_name_becomes_markup(full):
    page, out = full
    html = (out / PAGE).read_text()
    assert "<script>alert" not in html
    assert html.count("</script>") == html.count("<script") == 2
    assert EVIL in page.words
    (data,) = re.findall(r'<script type="application/json" id="replay-data">(.*?)</script>', html, re.DOTALL)
    assert [(arm["name"], arm["steps"]) for arm in json.loads(data)] == [
        (arm, TRACE["steps"]) for arm in ("standard", EVIL)
    ]
    for picture in (out / FIGURES).glob("*.svg"):
        assert "<script" not in picture.read_text()


def test_figures_have_names_and_colours_of_the_page(full):
    page, out = full
    pictures = page.all("svg")
    assert len(pictures) == 2 * 3 + 1 + 2 + 2 + 2 + 1  # curves, ratios, rates, variance, densities, norms
    assert all(attributes["role"] == "img" for attributes in pictures)
    html = (out / PAGE).read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not any(day in drawn for day, _ in PALETTE.values())
    assert "var(--arm-0)" in drawn
    assert {p.stem for p in (out / FIGURES).glob("*.svg")} == {p.stem for p in (out / FIGURES).glob("*.png")}
    assert len(list((out / FIGURES).glob("*.svg"))) == len(pictures)


def test_tables_have_headers_and_full_rows(full):
    _, out = full
    for table in re.findall(r"<table>.*?</table>", (out / PAGE).read_text(), re.DOTALL):
        assert "<caption>" in table
        head, *bodies = re.split(r"<tbody>", table)
        columns = head.count('<th scope="col"')
        for body in bodies:
            first, *others = re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
            assert re.match(r'<tr><th scope="row(group)?"', first)
            assert first.count("<td") == columns - 1
            assert all(row.count("<td") == columns - 1 and "<th" not in row for row in others)


def test_costs_are_switched_by_radio_buttons(full):
    page, _ = full
    radios = [attributes for attributes in page.all("input") if attributes["type"] == "radio"]
    assert [attributes["value"] for attributes in radios] == ["step", "seconds", "tokens"]
    drawn = [a["data-against"] for a in page.all("figure") if "data-against" in a]
    assert sorted(set(drawn)) == ["seconds", "step", "tokens"]


def test_what_is_not_in_the_records_is_named_with_the_way_to_get_it(tmp_path):
    page = Page(write_page(Results.of(BARE), tmp_path).read_text())
    keys = {attributes["id"] for attributes in page.all("section")}
    assert not keys & {"rates", "variance", "densities", "noise", "replay", "matched"}
    for how in ("--budgets", "unmask variance", "P-POTS", "Gradient noise", "Replay", "Loss by mask rate"):
        assert how in page.words.partition("Not in these records")[2]


def test_targets_that_nobody_reached_are_a_sentence(tmp_path):
    flat = bare(*(record(arm, 1, 0.0, 0.0, 0.0) for arm in ("standard", "puma")))
    page = Page(write_page(Results.of(flat), tmp_path).read_text())
    assert "No run held any target" in page.words


def test_text_is_shown_with_what_was_written(tmp_path):
    trace = {"start": ["a", None], "steps": [[[1, "<b>"]]], "truth": ["a", "c"], "columns": None, "exact": False}
    page = Page(write_page(Results.of([r | {"trace": trace} for r in BARE]), tmp_path).read_text())
    assert "What was written: ac" in page.words
    assert [a["class"] for a in page.all("span") if a.get("class") in ("given", "filled")] == ["given", "filled"] * 2


def test_screening_and_budgets_have_tables_of_their_own(tmp_path):
    longer = bare(*(record(arm, 1, 0.0, end, end, steps=600) for arm, end in (("standard", 0.7), ("puma", 0.9))))
    screened = Results.of([r | {"role": "screen", "seed": 9} for r in BARE])
    page = Page(write_page(Results.of(BARE + longer), tmp_path, screened).read_text())
    assert {"matched", "screening"} <= {attributes["id"] for attributes in page.all("section")}


def test_advice_of_a_probe_comes_first(tmp_path):
    """From records with rows: what the rule says of them is the page's first section, with what explains it."""
    random = np.random.default_rng(0)
    rows = {
        arm: (base + random.normal(scale=0.2, size=20)).tolist() for arm, base in (("standard", 25), ("puma", 20))
    }
    probed = [
        r
        | {"seed": seed, "finals": {"rows": {"result": {"solved": 0.5, "nats": rows[r["arm"]], "tokens": [10] * 20}}}}
        for seed in (1, 2)
        for r in BARE
    ]
    (tmp_path / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in probed))
    points = [
        Point(label, Estimate(y, y, y), None, None, 5, 5) for label, y in (("0", 3.0), ("4", 1.2), ("all", 1.0))
    ]
    probe = read_advice(tmp_path, steps=300, horizon=900, locality=(Curve("visible within", tuple(points)),))
    probe.save(tmp_path)
    found = Decomposition(*(Estimate(value, value, value) for value in (3.0, 2.0, 5.0, 10.0)), signal=1.0)
    half = replace(found, masks=Estimate(0.0, 0.0, 0.0))
    save_variance(
        tmp_path / VARIANCE,
        {arm: dict.fromkeys(("loss", "gradient"), d) for arm, d in (("standard", found), ("ppots-mirror", half))},
        {},
    )
    page = Page(write_page(Results.of(probed), tmp_path).read_text())
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections[:2] == ["advice", "verdict"]
    for told in (
        "Try puma first.",
        "Sure for the length of the probe",
        "300 of 900 steps (33%)",
        "30% from masks (A), 20% from mask rates (B), 50% from rows (C)",
        "ppots-mirror leaves 70% of it",
        "90% lies within 4 positions",
        "Where the loss is, by visible within",
    ):
        assert told in page.words
    for last in ("all", "32"):  # the whole row, by name or as a radius that covers it
        nothing = (points[0], replace(points[1], label=last, loss=points[2].loss), points[2])
        assert advice_lines(replace(probe, locality=(Curve("visible within", nothing),)))[3:] == []
    noisy = (points[0], replace(points[1], loss=Estimate(0.98, 0.98, 0.98)), points[2])  # below the loss by all
    told = advice_lines(replace(probe, locality=(Curve("visible within", noisy),)))
    assert told[3:] == ["Of what context tells of a masked token, 100% lies within 4 positions."]
    for one_seed in (True, False):
        advice = replace(probe.advice, seeds=1 if one_seed else 2)
        told = [row[3] for row in advice_grid(replace(probe, advice=advice)).rows]
        assert told == ["", ONE_SEED if one_seed else "worse"]  # an interval over rows is no verdict by itself


def test_the_command_that_made_the_runs_is_shown(tmp_path):
    command = "unmask compare sudoku --arms a 'b=Blockwise(size=4)' --out runs/it"
    made = [r | {"provenance": {"torch": "9.9", "command": command}} for r in BARE]
    page = Page(write_page(Results.of(made), tmp_path).read_text())
    assert page.words.count(command) == 1
    assert page.words.index("Made again by") < page.words.index(command) < page.words.index("unmask report")
    assert f"unmask report {tmp_path} --measure solved # this page" in " ".join(page.words.split())
    own = [r | {"curve": [point | {"own": 1.0} for point in r["curve"]]} for r in BARE]
    page = Page(write_page(Results.of(own, "own", rises=True), tmp_path).read_text())
    assert "--measure own --rises" in page.words


def test_commands_leave_the_page(command, tmp_path):
    (tmp_path / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in BARE))
    code, out, _ = command("report", str(tmp_path), "--title", "mine & yours")
    assert code == 0
    assert f"Report: {tmp_path / PAGE}" in out
    assert "<h1>mine &amp; yours</h1>" in (tmp_path / PAGE).read_text()


def test_template_is_part_of_the_package():
    for name in ("page.html", "page.css", "page.js"):
        assert (files("unmask.report") / "template" / name).is_file()


def test_colours_are_one_to_one():
    """A colour by day stands for one variable."""
    days = [day for day, _ in PALETTE.values()]
    assert len(days) == len(set(days))
    line = '<path id="a" d="M 1.23456 0" style="fill: #1c2530"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9pt">{line}</svg>'
    assert '<path d="M 1.23 0" style="fill: var(--ink)" />' in inline(svg, "n", "a < b", "")


def test_variances_are_read_as_they_were_saved(tmp_path):
    found = Decomposition(*(Estimate(value, 0.0, 9.0) for value in (3.0, 2.0, 1.0, 6.0)), signal=1.0)
    arms = {"standard": {"loss": found}}
    save_variance(tmp_path / "v.json", arms, {})
    assert load_variance(tmp_path / "v.json") == arms
    (tmp_path / "v.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no variances"):
        load_variance(tmp_path / "v.json")

"""The report of a study, from records written by hand."""

from __future__ import annotations

import json
import re

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from unmask.evaluation.results import RECORDS, Results
from unmask.report.costs import costs
from unmask.report.curves import curve_figure, plot_results, ranking_figure
from unmask.report.grid import Grid
from unmask.report.study import caution, ends, grids_of, matched, numbers, spread, verdicts, write_report


def _record(arm, seed, *values, key="solved", steps=300, role="compare", finals=None):
    curve = [
        {
            "step": steps * i // (len(values) - 1),
            "seconds": 2.5 * i,
            "tokens": 5000 * i,
            key: value,
            "loss": 2.0 - value,
            "interval": [value - 0.05, value + 0.05],
            "strata": {"25-28": {key: value / 2, "interval": [0.0, 1.0]}},
        }
        for i, value in enumerate(values)
    ]
    record = {"study": "s", "control": "standard", "arm": arm, "seed": seed, "steps": steps, "role": role}
    made = {"training": {"batch_size": 8}, "parameters": 7, "provenance": {"torch": "9.9"}}
    return record | made | {"curve": curve, "finals": finals or {}, "config": {}}


ONE = [_record("standard", 1, 0.0, 0.3, 0.6, 0.6), _record("puma", 1, 0.0, 0.6, 0.9, 0.9)]
FIVE = [
    _record(arm, seed, 0.0, *(share + 0.01 * (seed % 3) for share in shares))
    for seed in range(5)
    for arm, shares in (("standard", (0.3, 0.6, 0.6)), ("puma", (0.6, 0.9, 0.9)))
]


def _cells(grid: Grid) -> dict[str, list[str]]:
    return {row[0] or row[1]: list(row) for row in grid.rows}


def test_the_end_of_one_seed_has_the_interval_of_its_evaluation():
    (grid,) = ends(Results.of(ONE))
    assert grid.title == "Solved at the end, 300 steps, %"
    assert grid.head == ["arm", "seeds", "all", "25-28"]
    assert _cells(grid)["puma"] == ["puma", "1", "90.0 (85.0–95.0)", "45.0 (0.0–100.0)"]


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_less():
    records = [
        _record(arm, seed, 0.0, less) for seed in (1, 2) for arm, less in (("standard", 0.5), ("puma", 0.4999))
    ]
    (cell,) = {row[1] for row in ends(Results.of(records))[1].rows}
    assert cell == "+0.0 (+0.0 to +0.0)"


MEASURED = {"solved": 0.25, "nats_per_token": 2.448, "loss": 2.9, "own": 7.0}


@pytest.mark.parametrize("measure", MEASURED)
@pytest.mark.parametrize("named", [(), ("nats_per_token",), ("solved", "own"), tuple(MEASURED)])
def test_an_interval_is_shown_beside_its_own_measure_alone(measure, named):
    """A bare one is that of the first known measure; a named one that of its name. Everywhere that shows some."""
    point = MEASURED | {f"{name}_interval": [MEASURED[name] - 0.2, MEASURED[name] + 0.2] for name in named}
    record = _record("standard", 1, 0.0, 0.0)
    record["curve"] = [{"step": i, "seconds": i, "interval": [0.0, 0.49], **point} for i in range(3)]
    results = Results.of([record], measure)
    own = (MEASURED[measure] - 0.2, MEASURED[measure] + 0.2) if measure in named else None
    own = own or ((0.0, 0.49) if measure == "solved" else None)
    scale, form = (100, ".1f") if results.measure.is_share else (1, results.measure.form)
    value, *around = (format(scale * x, form) for x in (MEASURED[measure], *(own or ())))
    assert ends(results)[0].rows[0][2] == (f"{value} ({'–'.join(around)})" if own else value)
    (axis, *_) = curve_figure(results, results.measure, "step", 300).axes
    (band,) = axis.collections
    drawn = band.get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == pytest.approx(own or (MEASURED[measure],) * 2)


def test_a_task_s_only_stratum_is_not_told_twice():
    curve = [point | {"strata": {"all": point["strata"]["25-28"]}} for point in ONE[0]["curve"]]
    (grid,) = ends(Results.of([ONE[0] | {"curve": curve}]))
    assert grid.head == ["arm", "seeds", "all"]


def test_several_seeds_are_compared_in_pairs():
    values, differences = ends(Results.of(FIVE))
    assert _cells(values)["standard"][:2] == ["standard", "5"]
    assert differences.title == "The same less standard's, paired by seed, points"
    assert _cells(differences) == {"puma": ["puma", "+30.0 (+30.0 to +30.0)", "+15.0 (+15.0 to +15.0)", "better"]}


MANY = [
    _record(arm, seed, 0.0, *(share + 0.01 * (seed % 3) * (arm == "puma") for share in shares))
    for seed in range(5)
    for arm, shares in (
        ("late", (0.1, 0.2, 0.3)),
        ("standard", (0.3, 0.6, 0.6)),
        ("puma", (0.6, 0.9, 0.9)),
        ("bell", (0.5, 0.7, 0.8)),
    )
]


def test_many_arms_are_put_in_order_and_drawn():
    results = Results.of(MANY)
    assert [arm for arm, _ in results.ranked(300)] == ["puma", "bell", "late"]
    assert [row[0] for row in ends(results)[1].rows] == ["puma", "bell", "late"]
    axis = ranking_figure(results, 300).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["puma", "bell", "late"]
    assert axis.yaxis_inverted()  # the best on top
    at = {line.get_ydata()[0]: line.get_xdata() for line in axis.lines[1:] if len(line.get_xdata()) == 2}
    assert at[1] == pytest.approx([20.0, 20.0])
    assert at[0][0] < 31.0 < at[0][1]


def test_less_is_first_where_less_is_better_and_finals_have_an_order_of_their_own():
    def finals(arm):
        return {"test": {"result": {"nats_per_token": {"standard": 2.0, "a": 1.9, "b": 1.5}[arm]}}}

    records = [
        _record(arm, seed, 3.0, end, key="nats_per_token", finals=finals(arm))
        for seed in (1, 2)
        for arm, end in (("standard", 2.0), ("a", 1.7), ("b", 1.8))
    ]
    results = Results.of(records)
    assert [arm for arm, _ in results.ranked(300)] == ["a", "b"]
    assert [arm for arm, _ in results.ranked(300, "test")] == ["b", "a"]
    assert results.ranked(300, "absent") == []
    assert ranking_figure(results, 300, "absent") is None


def test_one_seed_and_one_arm_have_no_order():
    assert ranking_figure(Results.of(ONE), 300) is None
    assert ranking_figure(Results.of(FIVE), 300) is None


def test_costs_name_who_reached_a_target_and_who_did_not():
    (grid,) = costs(Results.of(ONE))
    rows = [list(row) for row in grid.rows]
    at = [row[0] for row in rows].index("50%")
    assert rows[at] == ["50%", "standard", "1 of 1", "167", "", "4", "", ""]
    assert rows[at + 1] == ["", "puma", "1 of 1", "83", "~2.00x", "2", "~2.00x", "no verdict from one seed"]
    assert "~: of one seed" in grid.note
    assert not any("~" in str(cell) for grid in costs(Results.of(FIVE)) for row in grid.rows for cell in row)
    assert rows[-1][-1] == "target not reached by the control"
    (empty,) = costs(Results.of([_record("standard", 1, 0.0, 0.0), _record("puma", 1, 0.0, 0.0)]))
    assert list(empty.rows) == []
    assert empty.note.startswith("No run held any target")
    assert empty.markdown() == f"## {empty.title}\n\n{empty.note}\n"


def test_verdicts_are_sentences():
    (one,) = verdicts(Results.of(ONE))
    assert one == "puma, 300 steps, 1 seed: ~2.00x fewer steps to 50%; at the end +30.0 points"
    (stuck,) = verdicts(Results.of([ONE[0], _record("puma", 1, 0.0, 0.0, 0.1, 0.1)]))
    assert stuck == "puma, 300 steps, 1 seed: target not reached (25%); at the end -50.0 points"
    (five,) = verdicts(Results.of(FIVE))
    assert five.startswith("puma, 300 steps, 5 seeds: ")
    assert five.endswith("at the end +30.0 (+30.0 to +30.0) points: better")
    assert "fewer steps to 50%: faster;" in five
    (losing,) = verdicts(Results.of([r | {"control": "puma"} for r in FIVE]))
    assert "1.99x (1.99–2.00) more steps to 50%: slower;" in losing
    assert "slower; at the end -30.0" in losing
    assert losing.endswith("worse")


def test_the_weaker_end_is_told_by_whose_it_is():
    slow, fast = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.0, 0.2, 0.4, 0.5, 0.7, 0.9)
    records = [_record(arm, seed, *row) for arm, row in (("standard", slow), ("puma", fast)) for seed in range(5)]
    (told,) = verdicts(Results.of(records))
    assert "1.67x (1.67–1.67) fewer steps to standard's end: faster;" in told
    (grid,) = costs(Results.of(records))
    assert [row[0] for row in grid.rows][-2:] == ["weaker end", ""]
    assert "Weaker end:" in grid.note
    (back,) = verdicts(Results.of([record | {"control": "puma"} for record in records]))
    assert "1.67x (1.67–1.67) more steps to standard's end: slower;" in back


def test_tokens_are_shown_where_they_are_not_in_proportion_to_steps():
    assert "tokens" not in costs(Results.of(FIVE))[0].head
    longer = [
        r | {"curve": [p | {"tokens": (2 if r["arm"] == "puma" else 1) * p["tokens"]} for p in r["curve"]]}
        for r in FIVE
    ]
    (grid,) = costs(Results.of(longer))
    assert grid.head[3:9] == ["steps", "ratio", "tokens", "ratio", "seconds", "ratio"]
    puma = next(row for row in grid.rows if row[1] == "puma" and row[4])
    steps, tokens = (float(puma[i].split("x")[0]) for i in (4, 6))
    assert tokens == pytest.approx(steps / 2, abs=0.01)


@pytest.mark.parametrize(("slower", "told"), [(1.0, False), (1.4, False), (1.6, True)])
def test_seconds_of_runs_that_were_not_alone_are_told(slower, told):
    records = [
        r | {"curve": [p | {"seconds": p["seconds"] * (slower if (r["arm"], r["seed"]) == ("puma", 3) else 1)}
                       for p in r["curve"]]}
        for r in FIVE
    ]  # fmt: skip
    (grid,) = costs(Results.of(records))
    assert ("Seconds tell little: a step of puma took up to 1.6 times as long" in grid.note) == told
    assert "Seconds" not in costs(Results.of(ONE))[0].note  # another arm's steps may be other work


def test_intervals_of_shares_end_at_none_and_all():
    curves = [_record("standard", seed, 0.0, 0.1, share) for seed, share in enumerate((0.7, 0.98, 0.99))]
    (grid, *_) = ends(Results.of([*curves, *(record | {"arm": "puma"} for record in curves)]))
    assert re.search(r"^89\.0 \(\d\d\.\d–100\.0\)$", grid.rows[0][2])


def test_a_budget_of_the_control_alone_has_no_table_of_costs():
    records = [_record("standard", seed, 0.0, 0.2, 0.4, 0.6, 0.8, 0.9) for seed in range(2)]
    other = [record | {"arm": "puma", "steps": 2 * record["steps"]} for record in records]
    assert costs(Results.of([*records, *other])) == []
    assert len(costs(Results.of([*records, *(record | {"arm": "puma"} for record in records)]))) == 1


@pytest.mark.parametrize("rises", [False, True])
def test_of_a_measure_of_one_s_own_it_is_said_what_is_better(rises):
    """The library cannot know it: less, unless it is told; by the reader, or by the study in its records."""
    found = [_record(r["arm"], r["seed"], *(p["solved"] for p in r["curve"]), key="accuracy") for r in FIVE]
    carried = [r | {"report": {"measure": "accuracy", "title": "", "rises": rises}} for r in found]
    for results in (Results.of(found, "accuracy", rises), Results.of(carried)):
        first, differences = ends(results)
        assert first.title.startswith(f"Accuracy ({'more' if rises else 'less'} is better) at the end")
        assert _cells(differences)["puma"][-1] == ("better" if rises else "worse")
    assert Results.of(found, "loss", rises=True).measure.rises is False  # what is known stays as it is


def test_little_is_not_nothing_and_what_an_arm_has_not_is_left_out():
    """Seconds of a short run, and a number that only one arm's final evaluation gave."""
    given = {"standard": {"other": 2.0}, "puma": {"other": 3.0, "entropy": 1.5}}
    short = [r | {"curve": [p | {"seconds": p["seconds"] / 100} for p in r["curve"]]} for r in ONE]
    found = Results.of([r | {"finals": {"t": {"result": given[r["arm"]]}}} for r in short])
    (told,) = numbers(found, "t")
    assert _cells(told) == {"standard": ["standard", "300", "1", "2", ""], "puma": ["puma", "300", "1", "3", "1.5"]}
    (run_to_run,) = spread(found)
    (time_to,) = costs(found)
    for grid in (run_to_run, time_to):
        column = list(grid.head).index("seconds")
        assert "0" not in {row[column] for row in grid.rows}
        assert any(float(row[column]) < 0.1 for row in grid.rows if row[column])


def test_losses_are_better_where_they_are_lower():
    records = [
        _record(arm, seed, 3.5, *(nats + 0.01 * (seed % 3) for nats in end), key="nats_per_token")
        for seed in range(5)
        for arm, end in (("standard", (3.0, 2.75, 2.5, 2.5)), ("bell", (2.5, 2.25, 2.0, 2.0)))
    ]
    results = Results.of(records)
    values, differences = ends(results)
    assert values.title == "Negative ELBO, nats per token at the end, 300 steps"
    assert _cells(differences)["bell"][1] == "-0.500 (-0.500 to -0.500)"
    assert _cells(differences)["bell"][-1] == "better"
    assert all("faster" in row[-1] for row in costs(results)[0].rows if row[1] == "bell")


def test_matched_horizons_and_finals_are_tables_of_their_own():
    records = [
        _record(arm, seed, 0.0, end, end, steps=steps, finals={"far": {"result": {"loss": 3 - end, "n": 2}}})
        for arm, steps, end in (
            ("standard", 100, 0.4),
            ("standard", 200, 0.5),
            ("puma", 100, 0.6),
            ("puma", 200, 0.7),
        )
        for seed in range(5)
    ]
    results = Results.of(records)
    (grid,) = matched(results)
    assert ["puma", "100", "200", "2x", "+10.0 (+10.0 to +10.0)", "5", "better"] in [list(row) for row in grid.rows]
    titles = [grid.title for grid in grids_of(results)]
    assert "Held-out loss, nats of far, 100 steps" in titles
    assert any(title.startswith("Matched horizons") and title.endswith("far") for title in titles)
    (more,) = (grid for grid in grids_of(results) if grid.title == "More of far, mean over seeds")
    assert more.head[3:] == ["n"]
    assert list(more.rows[0]) == ["standard", "100", "5", "2"]


def test_an_arm_of_half_the_budget_is_held_against_the_control_s_whole_one():
    ends_of = {("standard", 200): 0.5, ("puma", 100): 0.6, ("bell", 100): 0.4}
    results = Results.of(
        [_record(arm, seed, 0.0, end, end, steps=n) for (arm, n), end in ends_of.items() for seed in range(5)]
    )
    assert verdicts(results) == [
        "puma, 100 steps, 5 seeds: +10.0 (+10.0 to +10.0) points with 2x fewer steps than standard's 200: better",
        "bell, 100 steps, 5 seeds: -10.0 (-10.0 to -10.0) points with 2x fewer steps than standard's 200: worse",
    ]
    (grid,) = matched(results)
    assert [row[0] for row in grid.rows] == ["puma", "bell"]
    same = Results.of([r | {"steps": 100} for r in (run.record for run in results.runs)])
    assert matched(same) == []


def test_spread_has_deviation_area_and_speed():
    (grid,) = spread(Results.of(FIVE))
    assert [row[:3] for row in grid.rows] == [["standard", "300", "5"], ["puma", "300", "5"]]
    standard, puma = grid.rows
    assert standard[3].startswith("0.8 (0.5–")
    assert standard[4] == ""
    assert puma[4] == "+25.0 (+25.0 to +25.0)"
    assert puma[5:] == ["8", "2,000"]


def test_the_page_says_how_much_it_may_be_trusted(tmp_path):
    write_report(Results.of(ONE), tmp_path / "one", Results.of([r | {"role": "screen", "seed": 9} for r in ONE]))
    write_report(Results.of(FIVE), tmp_path / "five", title="my data")
    one, five = ((tmp_path / name / "summary.md").read_text() for name in ("one", "five"))
    assert "indication" in one
    assert "# Screening" in one
    assert "indication" not in five
    assert five.startswith("# my data\n")
    assert "Screening" not in five
    assert "| torch | 9.9 |" in five
    assert "| arm | seeds | all | 25-28 |\n| --- | ---: | ---: | ---: |" in five
    for folder in ("one", "five"):
        assert (tmp_path / folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def _picture(path, records, **options):
    plot_results(Results.of(records), path, **options)
    return matplotlib.image.imread(path)


def test_picture_shows_what_was_measured(tmp_path):
    """Other numbers give another picture, the same numbers the same one; held-out loss has a row of its own."""
    one, same = (_picture(tmp_path / f"{i}.png", ONE) for i in range(2))
    other = _picture(tmp_path / "other.png", [ONE[0], _record("puma", 1, 0.0, 0.6, 0.8, 0.8)])
    assert np.array_equal(one, same)
    assert one.shape == other.shape
    assert not np.array_equal(one, other)
    bare = [r | {"curve": [{k: v for k, v in p.items() if k != "loss"} for p in r["curve"]]} for r in ONE]
    assert _picture(tmp_path / "bare.png", bare).shape[0] < one.shape[0]
    assert _picture(tmp_path / "many.png", [_record(str(i), 1, 0.0, 0.5, 0.5) for i in range(12)] + ONE).size > 0
    plot_results(Results.of(FIVE), tmp_path / "curves.svg", title="a title")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_a_grid_keeps_signs_that_its_languages_read(tmp_path):
    grid = Grid("a [title]", ["arm", "n"], [["a|b", "1"], ["[red]", "+2.5"]], "a note")
    assert grid.markdown().splitlines()[-3:] == ["| --- | ---: |", "| a/b | 1 |", "| [red] | +2.5 |"]
    console = Console(record=True, width=60)
    console.print(grid.rich())
    assert "[red]" in console.export_text()


def _write(folder, records):
    folder.mkdir(parents=True)
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_report_reads_records_alone(command, tmp_path):
    few = [r | {"curve": [{k: v for k, v in p.items() if k != "tokens"} for p in r["curve"]]} for r in ONE]
    _write(tmp_path / "all" / "one", few)
    _write(tmp_path / "all" / "five", [r | {"seed": seed} for seed in range(5) for r in few])
    code, out, _ = command("report", str(tmp_path / "all"))
    assert code == 0
    assert "puma, 300 steps, 5 seeds:" in out
    first = (tmp_path / "all" / "five" / "summary.md").read_text()
    assert command("report", str(tmp_path / "all" / "five"), "--title", "mine")[0] == 0
    again = (tmp_path / "all" / "five" / "summary.md").read_text()
    assert again == first.replace("# s\n", "# mine\n")
    assert command("report", str(tmp_path / "all" / "one"), "--measure", "loss")[0] == 0
    assert "held-out loss" in (tmp_path / "all" / "one" / "report.html").read_text()


@pytest.mark.parametrize(
    ("records", "words", "message"),
    [
        (None, [], "does not exist"),
        (None, [], "holds no records.jsonl"),
        ([], [], "no run is whole yet"),
        (ONE, ["--measure", "sloved"], "no evaluation has 'sloved'; did you mean 'solved'"),
        (
            [r | {"curve": [*r["curve"][:-1], r["curve"][-1] | {"infilled": 0.5}]} for r in ONE],
            ["--measure", "infilled"],
            "not every evaluation has 'infilled'",
        ),
        ([{"arm": 1}], [], "holds no records of a study"),
    ],
)
def test_report_explains_mistakes(command, tmp_path, records, words, message):
    folder = str(tmp_path)
    if message == "does not exist":
        folder = str(tmp_path / "nosuch")
    elif records is not None:
        _write(tmp_path / "s", records)
    code, _, err = command("report", folder, *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "data order, weights at the start and validation noise"),
        ({"masking": {"type": "Other"}}, "data order, weights at the start and validation noise"),
        ({"model": {"type": "TextModel", "width": 32}}, "data order and validation noise"),
        ({"start": "pretrained"}, "data order and validation noise"),
        ({"evaluation": {"type": "Other"}}, "data order and weights at the start"),
        ({"data": {"type": "TextData", "length": 9}}, "weights at the start"),
        (
            {"data": {"type": "TextData", "length": 8, "stream": False}},
            "data order, weights at the start and validation noise",
        ),
        ({"data": {"type": "Rows"}, "model": {"type": "Other"}}, "their seed alone"),
    ],
)
def test_what_runs_of_a_seed_share_is_what_their_configs_share(change, said):
    config = {"data": {"type": "TextData", "length": 8}, "model": {"type": "TextModel", "width": 16}, "masking": {}}
    runs = [
        {"study": "s", "control": "a", "arm": arm, "seed": 1, "steps": 4, "role": "compare", "finals": {}}
        | {"curve": [{"step": 4, "solved": 0.5}], "config": config | more}
        for arm, more in (("a", {}), ("b", change))
    ]
    assert Results.of(runs).shared == said
    assert f"share {said}." in caution(Results.of(runs))


def test_what_there_is_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match=r"no run of the control 'standard' of the study 's' .*--only standard"):
        Results.of([_record("puma", seed, 0.0, 0.5, 0.9) for seed in (1, 2)])

"""One name, one meaning: in recipes, in `unmask variance`, in the records of the studies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from unmask import ELBO, IndependentMasking, ProgressiveUnmasking, RowMean
from unmask.cli.options import DEFAULT_ARMS
from unmask.cli.study import load_studies
from unmask.cli.variance import ARMS, ESTIMATES
from unmask.config import from_json, to_json
from unmask.parts import named_masking
from unmask.parts.maskings import MASKINGS, MEASURED, named_by
from unmask.recipes import RECIPES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", MEASURED)
def test_every_name_is_a_pair_that_goes_together_and_no_other_s(name):
    named = MEASURED[name]
    named.objective.check(named.masking)
    assert named_by(named.masking, named.objective) == name
    assert (
        named_by(*(from_json(json.loads(json.dumps(to_json(x)))) for x in (named.masking, named.objective))) == name
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_names_one_meaning(recipe):
    """But for PUMA's stages and threshold, which are each recipe's own; its loss is not."""
    for name, named in MASKINGS.items():
        run = RECIPES[recipe](name)
        assert run.objective == named.objective
        assert run.masking == named.masking or name == "puma"


def test_no_baseline_can_be_changed_by_a_recipe():
    other = ProgressiveUnmasking(stages=3)
    assert [name for name in MASKINGS if named_masking(name, other) != named_masking(name)] == ["puma"]


def test_variance_measures_by_the_same_names():
    assert all((MEASURED[name].masking, MEASURED[name].objective) == arm for name, arm in ARMS.items())
    assert ESTIMATES[0] == "standard"  # the unit of the table
    assert set(ARMS) >= {"llada", "uniform-count", "clipped"}


@pytest.mark.parametrize(("name", "strata"), [("standard", True), ("llada", False)])
def test_mdlm_and_llada_weigh_by_the_inverse_rate_from_a_thousandth(stream_of, name, strata):
    chosen = named_masking(name)
    batch = chosen["masking"].start(stream_of([6] * 64), 64).draw()
    weight, masked = chosen["objective"].weights(batch), batch.masked
    rate = batch.rate.expand(masked.shape)
    assert (weight * rate)[masked] == pytest.approx(0.999)  # 1 / density
    assert batch.rate.min() > 1e-3
    stratum = ((batch.rate[:, 0] - 1e-3) / 0.999 * 64).floor().long()
    assert (len(stratum.unique()) == 64) == strata
    assert float(chosen["objective"].normaliser(batch)) == 6 * 64


def test_puma_s_baseline_masks_every_number_of_tokens_alike(stream_of):
    chosen = named_masking("uniform-count")
    assert chosen["objective"] == RowMean()
    process = chosen["masking"].start(stream_of([5] * 50), 50)
    count = torch.cat([process.draw().masked.sum(1) for _ in range(40)])
    assert (torch.bincount(count, minlength=6)[1:] - 400).abs().max() < 5 * 18  # five deviations of 2000 draws


def test_clipped_keeps_to_its_interval_without_a_weight(stream_of):
    chosen = named_masking("clipped")
    batch = chosen["masking"].start(stream_of([6] * 64), 64).draw()
    assert 0.3 < float(batch.rate.min()) < float(batch.rate.max()) <= 0.8
    assert set(chosen["objective"].weights(batch).unique().tolist()) <= {0.0, 1.0}


def _arms():
    for file in sorted(EXPERIMENTS.rglob("records.jsonl")):
        for record in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            config = record.get("config") or record
            if "masking" in config:
                yield file.parent.relative_to(EXPERIMENTS).as_posix(), record["arm"], config


def test_records_name_what_was_trained():
    """An arm that has a name of the table is what the table says, in the fields that its record has."""
    seen = set()
    for folder, arm, config in _arms():
        if arm not in MEASURED or arm == "puma":
            continue
        seen.add(arm)
        named = MEASURED[arm]
        for part in ("masking", "objective"):
            expected, found = to_json(getattr(named, part)), config.get(part)
            if found is not None:
                assert _only(found, expected) == _only(expected, found), (folder, arm, part)
    assert seen >= {"standard", "uniform-count", "bell"}


EXPLAIN = ("pool",)  # what takes one method apart and ranks none


def test_studies_name_what_they_train(monkeypatch):
    """But for PUMA's settings, which are each study's own."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    seen = set()
    for file in sorted(EXPERIMENTS.rglob("study.py")):
        for study in load_studies(file):
            cells = {cell.arm: cell.config for cell in study.cells() or study.cells(screen=True)}
            for arm in cells.keys() & MEASURED.keys() - {"puma"}:
                trained = cells[arm].masking, cells[arm].objective
                assert trained == (MEASURED[arm].masking, MEASURED[arm].objective), (file, arm)
                seen.add(arm)
            assert study.control != "standard" or "clipped" in study.arms, f"{file}: its strong baseline is missing"
        arms = {arm for study in load_studies(file) for arm in study.arms}
        assert file.parent.name in EXPLAIN or any(arm.endswith("clipped") for arm in arms), file
    assert seen >= {"standard", "clipped", "uniform-count", "bell"}


@pytest.mark.parametrize("command", DEFAULT_ARMS)
def test_comparisons_carry_baselines_unasked(command):
    assert {"uniform-count", "clipped"} <= set(DEFAULT_ARMS[command])


def test_comparisons_that_the_docs_show_carry_the_strong_baseline():
    """On Sudoku it is `high-rates`, which the demo has."""
    root, shown = EXPERIMENTS.parent, []
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = re.sub(r"\\?\s+", " ", page.read_text(encoding="utf-8"))
        for recipe, arms in re.findall(r"unmask compare (\w+) [^`]*?--arms ([\w-]+(?: [\w=-]+)*)", text):
            shown.append(recipe)
            assert recipe == "sudoku" or "clipped" in arms.split(), (page.name, recipe, arms)
    assert len(shown) > 8


def _only(one: dict, other: dict) -> dict:
    """The fields that both have, all the way down."""
    return {
        key: _only(value, other[key]) if isinstance(value, dict) and isinstance(other[key], dict) else value
        for key, value in one.items()
        if key in other
    }


def test_an_arm_is_named_by_what_it_trained():
    assert named_by(IndependentMasking(), ELBO()) == "independent"
    assert named_by(IndependentMasking(), RowMean()) is None

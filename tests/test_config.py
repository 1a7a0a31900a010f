"""Configs print, read back, round-trip through JSON, and explain wrong names."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

import unmask
import unmask.recipes
from unmask import (
    Bell,
    Bernoulli,
    Beta,
    Clipped,
    Decoding,
    ExactCount,
    IndependentMasking,
    ProgressiveUnmasking,
    SudokuTask,
    Uniform,
)
from unmask.config import differences, from_json, nearest, parse, positive_int, to_json
from unmask.masks import MaskRule
from unmask.objectives import Objective
from unmask.policies import POLICIES
from unmask.recipes import SudokuData, SudokuModel, sudoku
from unmask.times import TimeDistribution


def _builds_with_defaults(kind: object) -> bool:
    return is_dataclass(kind) and all(
        f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind)
    )


PUBLIC = {
    name: getattr(module, name)
    for module in (unmask, unmask.recipes)
    for name in module.__all__
    if _builds_with_defaults(getattr(module, name))
}
OTHERS = {
    "nested": IndependentMasking(Clipped(0.1, 0.7), ExactCount(), "antithetic", pair="mirror", mirror_below=0.25),
    "puma": ProgressiveUnmasking(stages=3, policy="margin", threshold=0.95, time=Clipped(0.5, 1.0), pool=4096),
    "puma of the paper": ProgressiveUnmasking(pool="batch"),
    "small float": Bell(mean=1e-3, std=0.1 + 0.2),
    "tuple": SudokuTask(clues=(30, 31), split="kaidoku"),
    "none": SudokuData(limit=7),
    "model": SudokuModel(layers=1, width=12, heads=3),
}
BASES = (TimeDistribution, MaskRule, Objective)
PRINTED = {
    name: (config(), base)
    for name, config in PUBLIC.items()
    for base in BASES
    if isinstance(config, type) and issubclass(config, base)
}


def test_the_public_configs_are_found():
    known = {"Uniform", "Bell", "Beta", "Clipped", "Bernoulli", "ExactCount", "IndependentMasking"}
    known |= {"ProgressiveUnmasking", "ELBO", "RowMean", "MaskedMean", "TrainingConfig", "SudokuData", "SudokuModel"}
    assert known <= set(PUBLIC)


@pytest.mark.parametrize("config", [kind() for kind in PUBLIC.values()], ids=PUBLIC)
def test_default_config_round_trips_through_json(config):
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_config_with_other_values_round_trips_through_json(config):
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("masking", ["standard", "puma"])
def test_whole_run_round_trips_through_json(masking):
    run = sudoku(masking)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_paths_functions_and_plain_values_become_json():
    value = {"path": Path("a/b"), "policy": positive_int, "pair": (1, 2.5), 3: None}
    assert to_json(value) == {"path": "a/b", "policy": "unmask.config:positive_int", "pair": [1, 2.5], "3": None}


@pytest.mark.parametrize("config", [ProgressiveUnmasking, Decoding])
def test_policy_given_as_a_function_is_saved_by_its_name(config):
    for name, policy in POLICIES.items():
        assert from_json(to_json(config(policy=policy))) == config(policy=name)


def test_own_policy_is_saved_for_the_record_and_never_imported():
    saved = to_json(ProgressiveUnmasking(policy=lambda scores, noise: noise))
    assert saved["policy"].startswith(f"{__name__}:")
    with pytest.raises(ValueError, match="unknown policy"):
        from_json(saved)


@pytest.mark.parametrize("value", [object(), {1, 2}, functools.partial(max, 1), b"bytes"])
def test_what_could_not_be_read_back_is_refused(value):
    with pytest.raises(TypeError, match="cannot be part of a saved config"):
        to_json({"field": value})


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"type": "Trapezoid"}, "no config type 'Trapezoid'"),
        ({"type": "generate"}, "no config type 'generate'"),
        ({"type": "__builtins__"}, "no config type '__builtins__'"),
        ({"type": "Beta", "a": 2, "c": 3}, "the saved Beta does not fit this version"),
        ({"type": "Beta", "a": -2}, "greater than 0"),
        ({"type": "IndependentMasking", "time": {"type": "Betta"}}, "no config type 'Betta'"),
    ],
)
def test_json_of_another_version_or_program_is_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        from_json(saved)


@pytest.mark.parametrize(("config", "base"), PRINTED.values(), ids=PRINTED)
def test_printed_config_parses_to_itself(config, base):
    assert parse(repr(config), base) == config
    assert parse(f"  {type(config).__name__} ", base) == config


@pytest.mark.parametrize(
    ("text", "base", "config"),
    [
        ("Beta(a=2, b=1)", TimeDistribution, Beta(2, 1)),
        ("Beta(3)", TimeDistribution, Beta(3)),
        ("Bell(mean=-1e-1, std=0.5)", TimeDistribution, Bell(-0.1, 0.5)),
        ("Clipped(low=0.1, high=0.2)", TimeDistribution, Clipped(0.1, 0.2)),
        ("Uniform", TimeDistribution, Uniform()),
        ("Bernoulli()", MaskRule, Bernoulli()),
        (
            "IndependentMasking(time=Beta(a=2, b=1), mask=ExactCount(), pair='mirror')",
            object,
            IndependentMasking(Beta(2, 1), ExactCount(), pair="mirror"),
        ),
    ],
)
def test_typed_configs(text, base, config):
    assert parse(text, base) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Betta(a=1)", "unknown TimeDistribution 'Betta'; did you mean 'Beta'"),
        ("uniform", "unknown TimeDistribution 'uniform'; did you mean 'Uniform'"),
        ("Bernoulli()", "unknown TimeDistribution 'Bernoulli'.*Known: .*Uniform"),
        ("TimeDistribution()", "unknown TimeDistribution 'TimeDistribution'"),
        ("Beta(c=1)", "unknown field of Beta 'c'. Known: a, b"),
        ("Beta(1, 2, 3)", "positional argument"),
        ("Beta(a='x')", "Beta"),
        ("Beta(a=-1)", "greater than 0"),
        ("Beta(**{'a': 1})", "Beta"),
        ("Beta(a=1", "write it as Name or Name"),
        ("3 + (4)", "neither a literal|no TimeDistribution"),
        ("Beta(a={[]: 1})", "neither a literal"),
        ("(3)", "is no TimeDistribution"),
        ("", "is no TimeDistribution"),
    ],
)
def test_wrong_text_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, TimeDistribution)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IndependentMasking(tim=Bell())", "unknown field of IndependentMasking 'tim'; did you mean 'time'"),
        ("IndependentMasking(time=Bel())", "unknown config 'Bel'; did you mean 'Bell'.*Known: .*Uniform"),
    ],
)
def test_what_is_wrong_inside_is_named_as_what_it_is(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, IndependentMasking, "masking")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('touch {0}')",
        "Beta(a=__import__('os').system('touch {0}'))",
        "Beta(a=open('{0}', 'w'))",
        "Beta(a=[open('{0}', 'w') for _ in range(1)])",
        "Beta(a=(lambda: open('{0}', 'w'))())",
        "Beta(**{{'a': open('{0}', 'w')}})",
        "Beta(*[open('{0}', 'w')])",
        "Uniform().__class__()",
        "exec('open(\\'{0}\\', \\'w\\')')",
        "Beta(a=2 ** 9 ** 9)",
    ],
)
def test_nothing_but_literals_and_configs_is_evaluated(tmp_path, text):
    proof = tmp_path / "proof"
    with pytest.raises(ValueError, match=r"unknown|neither|is no|cannot read|Beta"):
        parse(text.format(proof), TimeDistribution)
    assert not proof.exists()


def test_differences_name_the_path_of_each_changed_field():
    old = to_json(IndependentMasking(time=Beta(1, 2)))
    new = to_json(IndependentMasking(time=Beta(1, 3), pair="mirror"))
    assert differences(old, new) == ["time.b: 2 -> 3", "pair: None -> mirror"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"b": 2}, "x") == ["x.a: 1 -> None", "x.b: None -> 2"]


def test_nearest_names_a_close_one_and_lists_all():
    assert nearest("pume", ["standard", "puma"]) == "; did you mean 'puma'? Known: standard, puma"
    assert (
        nearest("eos", ["drop", "eos_as_padding"]) == "; did you mean 'eos_as_padding'? Known: drop, eos_as_padding"
    )
    assert nearest("zzz", ["standard", "puma"]) == ". Known: standard, puma"


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_sizes_are_whole_numbers_of_at_least_one(value):
    with pytest.raises(ValueError, match="batch must be an integer of at least 1"):
        positive_int("batch", value)
    positive_int("batch", 1)
    positive_int("seed", 0, least=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, bad) for name in ("steps", "batch_size", "log_every", "keep_checkpoints") for bad in (0, -2, 1.5)),
        *((name, bad) for name in ("micro_batch_size", "threads", "checkpoint_every") for bad in (0, 2.0)),
        ("evaluate_every", -1),
        ("warmup_steps", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip_norm", 0.0),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("final_learning_rate", 1.5),
        ("decay_steps", 5),  # of cosine, the default
        ("ema_decay", 0.0),
        ("ema_decay", 1.0),
        ("schedule", "quadratic"),
        ("precision", "fp8"),
    ],
)
def test_training_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        unmask.TrainingConfig(**{field: value})


def test_a_constant_rate_has_no_other_end():
    with pytest.raises(ValueError, match="leave out final_learning_rate"):
        unmask.TrainingConfig(schedule="constant", final_learning_rate=0.1)


def test_a_fresh_process_knows_every_type_that_a_config_of_ours_may_name():
    """Names are loaded when they are used: the process of a study's run has used none of them yet."""
    from unmask import config, parts, policies  # noqa: F401  (what enters types in the table)
    from unmask.data import endings  # noqa: F401

    for name in unmask.__all__:
        getattr(unmask, name)
    types = sorted(name for name, thing in config._OURS.items() if isinstance(thing, type))
    assert {"Decoding", "SudokuData", "RunConfig", "PPOTS", "Rainbow", "CAP"} <= set(types)
    asked = f"from unmask.config import _our; print([n for n in {types} if _our(n) is None])"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

"""What the commands share: recipes and their configs as options."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from datasets import Dataset
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from unmask.config import from_json, nearest, parse, to_json
from unmask.data.documents import JSON_LINES, TEXTS
from unmask.data.importance import RowImportance
from unmask.data.sequences import is_fasta
from unmask.data.tables import is_table
from unmask.masks import MaskRule
from unmask.objectives import Objective
from unmask.parts.maskings import MASKINGS as NAMED
from unmask.parts.rows import RowsSource
from unmask.policies import Policy
from unmask.processes import Blockwise, IndependentMasking, ProgressiveUnmasking
from unmask.recipes import RECIPES, RunConfig, TextModel
from unmask.schedules import Ramp, Schedule, parse_schedule
from unmask.times import TimeDistribution
from unmask.training.console import standard_error
from unmask.training.platform import default_device

RunConfigs = dict[str, RunConfig]
MASKINGS = (IndependentMasking, ProgressiveUnmasking, Blockwise)
DEFAULT_ARMS = {
    "compare": ("uniform-count", "clipped", "puma"),  # PUMA's own baseline, rates in an interval, and PUMA
    "advise": ("standard", "uniform-count", "clipped", "bell", "best", "puma"),  # baselines, and what may beat them
}
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _printed_configs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Small configs are typed the way they print; a policy is typed by its name."""
    kind: Any = info.type
    if kind in (TimeDistribution, MaskRule, Objective):
        return _typed("NAME(...)", lambda word: parse(word, kind), lambda value: isinstance(value, kind))
    if kind == RowImportance | None:
        return _typed(
            "RowImportance(...)|None",
            lambda word: None if word == "None" else parse(word, RowImportance),
            lambda value: value is None or isinstance(value, RowImportance),
        )
    if kind == Schedule:
        return _typed("SCHEDULE", parse_schedule, lambda value: isinstance(value, int | float | tuple | Ramp))
    if kind == RowsSource:
        return _typed("SOURCE", str, lambda value: value is None or isinstance(value, str) or callable(value), str)
    if kind == str | Policy:
        return _typed("NAME", str, lambda value: isinstance(value, str) or callable(value), str)
    return None


def _typed(
    metavar: str, read: Callable[[str], Any], fits: Callable[[Any], bool], shown: Callable[[Any], str] = repr
) -> PrimitiveConstructorSpec:
    """An option of one word: how it is read, which values are of its kind, how one is shown as a default."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=fits,
        str_from_instance=lambda value: [shown(value)],
    )


def chosen_device(name: str) -> torch.device:
    """The device of that name; of "auto" the GPU where there is one. ValueError where it cannot be used."""
    try:
        return torch.empty(0, device=default_device() if name == "auto" else name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without it
        raise ValueError(f"--device {name} cannot be used: {error}") from None


def about(kind: Any, help_text: str) -> Any:
    """The type of an option with its explanation."""
    return Annotated[kind, tyro.conf.arg(help=help_text)]


def flag(help_text: str) -> Any:
    """The type of an option that is on where it is named."""
    return about(tyro.conf.FlagCreatePairsOff[bool], help_text)


RUN_SIDE_BY_SIDE = [
    ("jobs", about(int | None, "Runs at a time. None: one for each GPU or core."), None),
    ("devices", about(tuple[int, ...] | None, "Numbers of the GPUs to use. None: all."), None),
]
"""Options of the commands that train several runs."""


def _description(recipe: str, command: str) -> str:
    """What a recipe says of itself and of its maskings, for --help."""
    if recipe not in RECIPES:  # a config file may come from anywhere
        return f"A run of the recipe {recipe}."
    summary = inspect.cleandoc(RECIPES[recipe].__doc__ or "").partition("\n\nArgs:")[0]
    masking = inspect.signature(RECIPES[recipe]).parameters["masking"].default
    many = command in DEFAULT_ARMS
    option, default = (
        ("--arms NAME NAME ...", " ".join(DEFAULT_ARMS[command])) if many else ("--masking NAME", masking)
    )
    names = "\n".join(f"  {name:<14} {named.about}" for name, named in NAMED.items())
    any_other = "or NAME=Blockwise(...), any masking as it prints" if many else "or any masking as it prints"
    return f"{summary}\n\n{option} (default: {default})\n{names}\n  {any_other}, with an objective after a comma"


def configured(
    default: RunConfig,
    command: str,
    words: list[str],
    extra: list[tuple[str, Any, Any]],
    hidden: tuple[str, ...] = (),
    settled: bool = False,
) -> tuple[RunConfig, dict[str, Any]]:
    """Parse `words` into the fields of `default`, less the hidden ones, and extra options (name, type, default).

    Where the data are settled (see `opened`), they are the default's, and what was chosen is said.
    """
    options: list[Any] = [
        (name, kind) if value is ... else (name, kind, field(default=value)) for name, kind, value in extra
    ]
    for f in fields(default):
        value = getattr(default, f.name)
        if f.name in ("recipe", *hidden):
            continue
        kind: Any = type(value)
        if isinstance(value, Objective):
            kind = about(Objective, "Weights of the masked tokens' losses: RowMean(), MaskedMean() or ELBO().")
        if f.name == "start":
            kind = about(str | None, "Folder of a run of the same model whose weights this one starts from.")
        if f.name == "training":  # its fields are typed without a prefix: --steps, not --training.steps
            kind = Annotated[kind, tyro.conf.arg(name="")]
        options.append((f.name, kind, field(default=value)))
    options.sort(key=len)  # dataclasses want fields without a default first
    kind = make_dataclass("Options", options, frozen=True)
    parsed = tyro.cli(
        kind,
        prog=f"unmask {command} {default.recipe}",
        args=words,
        description=_description(default.recipe, command),
        registry=REGISTRY,
    )
    values = vars(parsed)
    names = {f.name for f in fields(default)} - ({"data"} if settled else set())
    config = replace(default, **{k: v for k, v in values.items() if k in names})
    if settled:
        standard_error(soft_wrap=True).print(_chosen(config), highlight=False)
    return config, values


def opened(command: str, words: list[str]) -> tuple[Callable[..., RunConfig], list[str], bool]:
    """Read a recipe's name and its parameters besides the masking, such as the data that it chooses sizes from.

    Returns:
        The recipe with these parameters, the words that are still to be read, and whether there were any.
    """
    recipe, words = named_recipe(command, words)
    names = [name for name in inspect.signature(recipe).parameters if name != "masking"]
    default, asks = recipe(), bool({"-h", "--help"} & set(words))
    if not names or (asks and not any(word.startswith("--data.source") for word in words)):
        return recipe, _without(names, words), False
    modules, words = take_option(words, "--module")
    kinds: dict[str, Any] = {"data": type(default.data), "pretrained": str | None}
    options = [
        (name, kinds.get(name, int | None), field(default=default.data if name == "data" else None)) for name in names
    ]
    parsed, _ = tyro.cli(
        make_dataclass("Options", options, frozen=True),
        prog=f"unmask {command} {default.recipe}",
        args=[word for word in words if word not in ("-h", "--help")],
        return_unknown_args=True,
        add_help=False,
        registry=REGISTRY,
    )
    given = vars(parsed)
    given["data"] = from_json(to_json(given["data"]), modules)
    if not given["data"].source:
        explained = f"unmask {command} {default.recipe} --help explains"
        raise ValueError(f"{default.recipe} needs data: --data.source FILE ({explained})")
    given["data"] = recipe(**given).data  # settled once, and read once
    return partial(recipe, **given), _without(names, words), True


def _without(names: list[str], words: list[str]) -> list[str]:
    """The words less `--pretrained`, where the recipe has read it: it is no field of a config."""
    return take_option(words, "--pretrained")[1] if "pretrained" in names else words


def _chosen(config: RunConfig) -> str:
    """What was chosen from the data, or typed instead, in two lines."""
    data, model, training = config.data, config.model, config.training
    rows = data.load()
    count = len(rows) if isinstance(rows, Dataset) else None  # nobody knows how many a stream has
    named = [f"{name} {getattr(data, name)}" for name in ("vocabulary", "alphabet") if hasattr(data, name)]
    length = getattr(data, "length", None)
    told = "rows from a stream" if count is None else f"{count:,} rows"
    told += f" of up to {length} tokens" if length else ""
    told += "" if count is None else f" to train, {len(data.held_out()):,} held out"
    if (left := getattr(data, "left_for_tests", int)()) > 0:
        told += f", {left:,} left for tests"
    body = "a pretrained model"
    if isinstance(model, TextModel):
        body = f"{model.layers} layers, {model.width} wide, {model.vocab_size} tokens"
    epochs = "" if count is None else f", {training.steps * training.batch_size / count:.1f} epochs"
    return (
        f"Data: {', '.join([told, *named])}. Model: {body}. Training: {training.steps:,} steps of "
        f"{training.batch_size} rows{epochs}.\nWhat was not typed was chosen from the data; "
        "--data.length, --model.layers, --model.width, --steps, --batch-size and the rest of --help change it."
    )


def named_recipe(command: str, words: list[str]) -> tuple[Callable[..., RunConfig], list[str]]:
    """Take the recipe's name off the front."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
        print(f"usage: unmask {command} RECIPE [options]\n\nrecipes:\n" + "\n".join(lines))
        print(f"\n`unmask {command} RECIPE --help` explains every option.")
        raise SystemExit(0 if words else 2)
    if words[0] in RECIPES:
        return RECIPES[words[0]], words[1:]
    if advice := _advice(words[0]):
        raise ValueError(f"{words[0]} is no recipe, but data for one: unmask {command} {advice} --out DIR")
    raise ValueError(f"unknown recipe '{words[0]}'{nearest(words[0], RECIPES)}")


def _advice(word: str) -> str | None:
    """The recipe and options for a file or folder, by its kind; None for what is neither."""
    path, suffix, typed = Path(word), Path(word).suffix.lower(), shlex.quote(word)
    if is_fasta(word) or suffix == ".smi":
        return f"sequences --data.source {typed}"
    if is_table(path) or suffix in JSON_LINES:
        return f"sft --data.source {typed} --data.prompt COLUMN --data.response COLUMN"
    return f"text --data.source {typed}" if path.exists() or suffix in TEXTS else None


def masked_as(recipe: Callable[..., RunConfig], text: str) -> RunConfig:
    """The recipe with a masking of its own by name, or any as it prints, with or without an objective after a comma.

    "puma", "Blockwise(IndependentMasking(), size=16)", "ProgressiveUnmasking(stages=4), RowMean()".
    """
    return replace(recipe(), **typed_masking(text)) if "(" in text else recipe(text)


def typed_masking(text: str) -> dict[str, Any]:
    """A masking as it prints, with or without an objective after a comma, by the names of `RunConfig`'s fields."""
    try:
        written = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"cannot read {text!r}; write a masking as Name(field=value, ...); classes of your "
            "own are handed over from Python alone (docs/extending.md)"
        ) from None
    parts = [ast.unparse(part) for part in (written.elts if isinstance(written, ast.Tuple) else [written])]
    if len(parts) > 2:
        raise ValueError(f"{text!r} is more than a masking and an objective")
    found = {"masking": parse(parts[0], MASKINGS, "masking")}
    return found | ({"objective": parse(parts[1], Objective)} if len(parts) > 1 else {})


def chosen_arms(recipe: Callable[..., RunConfig], command: str, words: list[str]) -> tuple[RunConfigs, list[str]]:
    """Take --arms out of the words: the runs by name, those of `DEFAULT_ARMS` where none are typed, and the rest.

    Raises:
        ValueError: for fewer than two names that differ.
    """
    written, words = take_option(words, "--arms")
    arms = {name: masked_as(recipe, text) for name, text in map(named_arm, written or DEFAULT_ARMS[command])}
    if len(arms) < max(2, len(written)):
        raise ValueError(f"--arms needs at least two different names, got {' '.join(written)}")
    return arms, words


def changes_of(arms: RunConfigs) -> dict[str, dict[str, Any]]:
    """What each arm has of the fields that typed arms differ in, as a study takes it."""
    differ = ["masking", *(["objective"] if len({arm.objective for arm in arms.values()}) > 1 else [])]
    return {name: {field: getattr(arm, field) for field in differ} for name, arm in arms.items()}


def named_arm(text: str) -> tuple[str, str]:
    """An arm's name and its masking: NAME is both, NAME=Masking(...) names any."""
    found = re.fullmatch(r"([\w.+-]+)=(.*)", text, re.DOTALL)
    if found is None and "(" in text:
        raise ValueError(f"give the arm {text} a name: --arms standard mine={text!r}")
    return (found[1], found[2]) if found else (text, text)


def take_option(words: list[str], name: str) -> tuple[list[str], list[str]]:
    """Take `--name value ...` or `--name=value` out of the words; returns its values and the rest."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(f"{name}=") else [word])]
    if name not in words:
        return [], words
    start = words.index(name)
    end = start + 1
    while end < len(words) and not words[end].startswith("-"):
        end += 1
    if end == start + 1:
        raise ValueError(f"{name} needs a value")
    return words[start + 1 : end], words[:start] + words[end:]

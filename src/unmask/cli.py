"""The `unmask` command line: train, compare, sample, variance.

Recipes give defaults; every field of the resulting config can be overridden by its name. What a config
prints as is also how it is typed: --masking.time "Beta(a=2, b=1)".
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from unmask.config import nearest, parse, to_json
from unmask.data.sudoku import is_solved
from unmask.evaluation.speedup import Arm
from unmask.evaluation.tasks import SudokuTask
from unmask.evaluation.variance import ARMS, Nested, compare_variance, save_variance
from unmask.masks import MaskRule
from unmask.objectives import Objective
from unmask.policies import Policy
from unmask.recipes import RECIPES, RunConfig
from unmask.recipes.base import load_model, load_run
from unmask.recipes.parallel import train_side_by_side
from unmask.report.board import board, story
from unmask.report.figures import plot_curves, plot_variance
from unmask.report.tables import final_table, speed_table, variance_table
from unmask.times import TimeDistribution

REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _printed_configs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Small configs are typed the way they print; a policy is typed by its name."""
    if info.type in (TimeDistribution, MaskRule, Objective):
        base = info.type
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME(...)",
            instance_from_str=lambda words: parse(words[0], base),
            is_instance=lambda value: isinstance(value, base),
            str_from_instance=lambda value: [repr(value)],
        )
    if info.type == str | Policy:
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str) or callable(value),
            str_from_instance=lambda value: [str(value)],
        )
    return None


def _about(kind: Any, help_text: str) -> Any:
    return Annotated[kind, tyro.conf.arg(help=help_text)]


def _flag(help_text: str) -> Any:
    return _about(tyro.conf.FlagCreatePairsOff[bool], help_text)


def _description(recipe: str, command: str) -> str:
    """What a recipe says of itself and of its maskings, for --help."""
    if recipe not in RECIPES:  # a config file may come from anywhere
        return f"A run of the recipe {recipe}."
    summary, _, maskings = inspect.cleandoc(RECIPES[recipe].__doc__ or "").partition("\n\nArgs:\n    masking: ")
    option, default = (
        ("--arms NAME NAME ...", "standard puma") if command == "compare" else ("--masking NAME", "standard")
    )
    return f"{summary}\n\n{option}: {' '.join(maskings.split())} (default: {default})"


def _configured(
    default: RunConfig,
    command: str,
    words: list[str],
    extra: list[tuple[str, Any, Any]],
    hidden: tuple[str, ...] = (),
) -> Any:
    """Parse `words` into the fields of `default`, less the hidden ones, and extra options (name, type, default)."""
    options: list[Any] = [
        (name, kind) if value is ... else (name, kind, field(default=value)) for name, kind, value in extra
    ]
    for f in fields(default):
        value = getattr(default, f.name)
        if f.name in ("recipe", *hidden):
            continue
        kind: Any = type(value)
        if isinstance(value, Objective):
            kind = _about(Objective, "Weights of the masked tokens' losses: RowMean(), MaskedMean() or ELBO().")
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
    names = {f.name for f in fields(default)}
    return replace(default, **{k: v for k, v in values.items() if k in names}), values


def _recipe(command: str, words: list[str]) -> tuple[Callable[..., RunConfig], list[str]]:
    """Take the recipe's name off the front."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
        print(f"usage: unmask {command} RECIPE [options]\n\nrecipes:\n" + "\n".join(lines))
        print(f"\n`unmask {command} RECIPE --help` explains every option.")
        raise SystemExit(0 if words else 2)
    if words[0] not in RECIPES:
        raise ValueError(f"unknown recipe '{words[0]}'{nearest(words[0], RECIPES)}")
    return RECIPES[words[0]], words[1:]


def _option(words: list[str], name: str) -> tuple[list[str], list[str]]:
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


def train(words: list[str]) -> None:
    """Train one model: unmask train RECIPE|CONFIG.json --out DIR [--masking NAME] [--resume] [options]."""
    if words and words[0].endswith(".json"):
        default, words = RunConfig.load(words[0]), words[1:]
    else:
        recipe, words = _recipe("train", words)
        masking, words = _option(words, "--masking")
        if len(masking) > 1:
            raise ValueError(f"--masking takes one value, got {' '.join(masking)}")
        default = recipe(*masking)
    config, options = _configured(
        default,
        "train",
        words,
        [
            ("out", _about(Path, "Folder of the run: metrics, config, checkpoints."), ...),
            (
                "resume",
                _flag("Go on from the newest whole checkpoint in --out; start afresh if there is none."),
                False,
            ),
            ("overwrite", _flag("Delete the run that --out holds."), False),
        ],
    )
    last = config.train(options["out"], resume=options["resume"], overwrite=options["overwrite"])
    print(f"trained: {last}")


def compare(words: list[str]) -> None:
    """Train several arms alike and compare them: unmask compare RECIPE --out DIR [--arms A B ...]."""
    recipe, words = _recipe("compare", words)
    names, words = _option(words, "--arms")
    names = names or ["standard", "puma"]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"--arms needs at least two different names, got {' '.join(names)}")
    arms = {name: recipe(name) for name in names}
    config, options = _configured(
        arms[names[0]],
        "compare",
        words,
        [
            ("out", _about(Path, "Folder of the comparison: one folder an arm, curves.png."), ...),
            ("resume", _flag("Go on with arms that were interrupted."), False),
            ("overwrite", _flag("Delete the runs that --out holds."), False),
            (
                "jobs",
                _about(int | None, "Arms trained at a time. None: all on a CPU, sharing its cores; one on a GPU."),
                None,
            ),
        ],
        hidden=("masking",),  # what the arms differ in
    )
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "masking"}
    out: Path = options["out"]
    runs = {name: replace(arm, **shared) for name, arm in arms.items()}
    train_side_by_side(runs, out, jobs=options["jobs"], resume=options["resume"], overwrite=options["overwrite"])
    results = [Arm.load(out / name) for name in names]
    plot_curves(results, out / "curves.png", title=f"{config.recipe}: one seed, an indication")
    console = Console()
    console.print(final_table(results), speed_table(results))
    console.print(
        "Same model, data order, steps and validation noise in each arm, trained side by side. One seed: an "
        "indication, not a proof. "
        f"Targets are reached to within {config.training.evaluate_every or config.training.steps} steps."
    )
    print(f"Curves: {out / 'curves.png'}")


def sample(words: list[str]) -> None:
    """Solve one unseen puzzle with a trained model: unmask sample RUN [--number N] [--policy NAME]."""
    options = tyro.cli(_Sample, prog="unmask sample", args=words, registry=REGISTRY)
    config, folder = load_run(options.run)
    if not isinstance(config.evaluation, SudokuTask):
        raise ValueError(f"`unmask sample` shows Sudokus; the run in {options.run} trained on something else")
    task = replace(config.evaluation, policy=options.policy, split=options.split)
    console, snapshots = Console(), []
    puzzle, made = task.solve_one(
        load_model(folder),
        options.number,
        lambda step, tokens, masked: snapshots.append(tokens[0, -81:].clone()),
    )
    order, sure = made.step[0, -81:].numpy(), made.confidence[0, -81:].numpy()
    answer = made.tokens[0, -81:].numpy()
    print(f"An unseen puzzle with {int((puzzle > 0).sum())} clues, by the model in {folder}:\n")

    def frame(step: int) -> Padding:
        shown = snapshots[step].numpy()
        last = order == step
        return Padding(
            Columns([board(puzzle, shown, last), story(order, sure, answer, step)], padding=(0, 4)), (0, 2)
        )

    with Live(frame(0), console=console, refresh_per_second=30) as live:
        for step in range(len(snapshots)):
            live.update(frame(step), refresh=True)
            if console.is_terminal:
                time.sleep(options.pause)
    solved = bool(is_solved(answer, puzzle))
    console.print("\nEvery cell in the order it was revealed, with the model's confidence:")
    console.print(story(order, sure, answer, len(snapshots), lines=81))
    least = float(np.min(sure[order >= 0]))
    verdict = "[bold green]solved[/]" if solved else "[bold red]not solved[/]"
    console.print(
        f"\n{verdict}: {made.revealed} cells, least sure {least:.1%}, {made.seconds:.1f} s", highlight=False
    )


@dataclass(frozen=True)
class VarianceOptions:
    """Options of `unmask variance`."""

    run: tyro.conf.Positional[str]
    """A run's folder, one of its checkpoints, or a recipe's name (then with random weights)."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which maskings; the first is the unit of the table."""
    batch_size: int = 16
    """Forwards of a batch, equal for all arms."""
    nested: Nested = field(default_factory=Nested)
    """Numbers of draws."""
    seed: int = 0
    """Of rows, rates and masks."""
    out: Path | None = None
    """Folder for record and plot; by default `variance` in the run's folder."""


def variance(words: list[str]) -> None:
    """Split the noise of loss and gradient into masks, rates and rows: unmask variance RUN [options]."""
    options = tyro.cli(VarianceOptions, prog="unmask variance", args=words, description=variance.__doc__)
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown:
        raise ValueError(f"unknown arm '{unknown[0]}'{nearest(unknown[0], ARMS)}")
    if options.run in RECIPES:
        config, title = RECIPES[options.run](), f"{options.run}, random weights"
        model, out = config.model.build(), options.out or Path("runs") / f"variance-{options.run}"
    else:
        config, folder = load_run(options.run)
        model, out = load_model(folder), options.out or Path(options.run) / "variance"
        title = f"{config.recipe}: {folder.parent.parent.name}, {folder.name}"
    console = Console()
    arms = compare_variance(
        model, config.data.load(), options.arms, options.batch_size, options.nested, options.seed, console
    )
    save_variance(out, arms, to_json({"title": title, "options": options}))
    plot_variance(arms, out / "variance.png", title=title)
    console.print(variance_table(arms, "loss"), variance_table(arms, "gradient"))
    print(f"Record and plot: {out}")


def _sample_options() -> type:
    run = _about(tyro.conf.Positional[Path], "A run's folder, or one of its checkpoints.")
    return make_dataclass(
        "Sample",
        [
            ("run", run),
            ("number", _about(int, "Which puzzle of the split."), field(default=0)),
            ("policy", _about(str, "Reveal policy."), field(default="confidence")),
            (
                "split",
                _about(Literal["test", "kaidoku"], "Which puzzles."),
                field(default="test"),
            ),
            ("pause", _about(float, "Seconds between cells."), field(default=0.15)),
        ],
    )


_Sample: Any = _sample_options()
COMMANDS = {command.__name__: command for command in (train, compare, sample, variance)}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Bad input ends with one line on standard error and exit code 2."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(
            "usage: unmask COMMAND ...\n\n" + "\n".join(lines) + "\n\n`unmask COMMAND --help` explains its options."
        )
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            raise ValueError(f"unknown command '{words[0]}'{nearest(words[0], COMMANDS)}")
        COMMANDS[words[0]](words[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        message = escape(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]unmask:[/] {message}", highlight=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("\nunmask: interrupted; the last checkpoint is kept, go on with --resume")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

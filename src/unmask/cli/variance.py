"""unmask variance: where the noise of loss and gradient comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from unmask.cli.options import chosen_device
from unmask.config import check_name, to_json
from unmask.evaluation.variance import Nested, compare_variance, save_variance
from unmask.objectives import InverseRate
from unmask.parts import RowsOnDisk
from unmask.parts.maskings import MEASURED
from unmask.processes import IndependentMasking
from unmask.recipes import RECIPES
from unmask.report.figures import plot_variance
from unmask.report.tables import variance_table
from unmask.runs.config import Tokenized, load_model, load_run, tokenizer_of
from unmask.runs.prepare import looked_up

ARMS = {
    name: (named.masking, named.objective)
    for name, named in MEASURED.items()
    if isinstance(named.masking, IndependentMasking)
}
ESTIMATES = [name for name, (_, objective) in ARMS.items() if isinstance(objective, InverseRate)]


@dataclass(frozen=True)
class VarianceOptions:
    """Options of `unmask variance`."""

    run: tyro.conf.Positional[str]
    """A run's folder, one of its checkpoints, or a recipe's name (then with random weights)."""
    arms: tuple[str, ...] = ()
    """Which maskings, by the names that recipes have; the first is the unit of the table. By default those that
    estimate the ELBO. Others weigh tokens otherwise, so their loss is another one."""
    batch_size: int = 16
    """Forwards of a batch, equal for all arms."""
    nested: Nested = field(default_factory=Nested)
    """Numbers of draws."""
    seed: int = 0
    """Of rows, rates and masks."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, ... auto: the GPU where there is one."""
    rows: str | None = None
    """Rows to draw instead of the run's: a folder of Dataset.save_to_disk, or a .parquet or .jsonl file, with the
    columns tokens and maskable."""
    module: tuple[str, ...] = ()
    """Modules, or .py files, of your own classes that the run names. They are imported, so their code is run."""
    out: Path | None = None
    """Folder for record and plot; by default `variance` in the run's folder."""


def variance(words: list[str]) -> None:
    """Split the noise of loss and gradient into masks, rates and rows: unmask variance RUN [options]."""
    options = tyro.cli(VarianceOptions, prog="unmask variance", args=words, description=variance.__doc__)
    device = chosen_device(options.device)
    for name in options.arms:
        check_name("arm", name, ARMS)
    if options.run in RECIPES:
        config, title = RECIPES[options.run](), f"{options.run}, random weights"
        model, out = config.model.build(), options.out or Path("runs") / f"variance-{options.run}"
        tokenizer = config.data.tokenizer() if isinstance(config.data, Tokenized) else None
    else:
        config, folder = load_run(options.run, options.module)
        model, out = load_model(folder, options.module), options.out or Path(options.run) / "variance"
        title, tokenizer = f"{config.recipe}: {folder.parent.parent.name}, {folder.name}", tokenizer_of(folder)
    data = config.data if options.rows is None else RowsOnDisk(options.rows)
    if data == RowsOnDisk():
        raise ValueError(f"the run in {options.run} was trained from Python and names no rows: name them with --rows")
    console = Console()
    chosen = {}
    for name in options.arms or ESTIMATES:
        try:
            chosen[name] = looked_up(ARMS[name], tokenizer)
        except ValueError as error:
            if options.arms:
                raise
            console.print(f"without {name}: {error}")
    arms = compare_variance(
        model.to(device), data.load(), chosen, options.batch_size, options.nested, options.seed, console
    )
    save_variance(out / "variance.json", arms, to_json({"title": title, "options": options}))
    plot_variance(arms, out / "variance.png", title=title)
    console.print(variance_table(arms, "loss"), variance_table(arms, "gradient"))
    print(f"Record and plot: {out}")

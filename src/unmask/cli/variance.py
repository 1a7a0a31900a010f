"""unmask variance: where the noise of loss and gradient comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console

from unmask.cli.options import chosen_device, named_arm, typed_masking
from unmask.config import check_name, to_json
from unmask.data.streamed import at_hand
from unmask.evaluation.decomposition import save_variance
from unmask.evaluation.variance import Nested, compare_variance
from unmask.objectives import ELBO, InverseRate, Objective
from unmask.parts import RowsOnDisk
from unmask.parts.maskings import MEASURED
from unmask.processes import IndependentMasking
from unmask.recipes import RECIPES
from unmask.report.tables import variance_grid
from unmask.report.variance import plot_variance
from unmask.runs.config import load_model, load_run, tokenizer_of
from unmask.runs.prepare import looked_up
from unmask.store.folder import check_out
from unmask.training.console import standard_error

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
    """Which maskings, by the names that recipes have, or NAME=IndependentMasking(...) as it prints, with an objective
    after a comma (default: ELBO()); the first is the unit of the table. By default those that estimate the ELBO.
    Others weigh tokens otherwise, so their loss is another one: their variance over the squared mean compares."""
    batch_size: int = 16
    """Forwards of a batch, equal for all arms."""
    nested: Nested = field(default_factory=Nested)
    """Numbers of draws."""
    seed: int = 0
    """Of rows, rates and masks; and of a recipe's random weights."""
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
    if options.out is not None:
        check_out(options.out)
    measured = dict(map(_measured, options.arms)) or {name: ARMS[name] for name in ESTIMATES}
    if len(measured) < len(options.arms):
        raise ValueError(f"--arms needs different names, got {' '.join(options.arms)}")
    if options.run in RECIPES:
        config, title = RECIPES[options.run](), f"{options.run}, random weights"
        if getattr(config.data, "source", options.run) in ("", ()):
            trained = f"unmask train {options.run} --data.source FILE --out DIR"
            raise ValueError(f"{options.run} has no data of its own: {trained}, then unmask variance DIR")
        torch.manual_seed(options.seed)
        model, out = config.model.build(), options.out or Path("runs") / f"variance-{options.run}"
        tokenizer = config.tokenizer()
    else:
        config, folder = load_run(options.run, options.module)
        model, out = load_model(folder, options.module), options.out or Path(options.run) / "variance"
        title, tokenizer = f"{config.recipe}: {folder.parent.parent.name}, {folder.name}", tokenizer_of(folder)
    data = config.data if options.rows is None else RowsOnDisk(options.rows)
    if data == RowsOnDisk():
        raise ValueError(f"the run in {options.run} was trained from Python and names no rows: name them with --rows")
    console = Console()
    chosen = {}
    for name, arm in measured.items():
        try:
            chosen[name] = looked_up(arm, tokenizer)
        except ValueError as error:
            if options.arms:
                raise
            console.print(f"without {name}: {error}", markup=False)
    arms = compare_variance(
        model.to(device),
        at_hand(data.load()),
        chosen,
        options.batch_size,
        options.nested,
        options.seed,
        standard_error(),
    )
    save_variance(out / "variance.json", arms, to_json({"title": title, "options": options}))
    plot_variance(arms, out / "variance.png", title=title)
    console.print(variance_grid(arms, "loss").rich(), variance_grid(arms, "gradient").rich())
    print(f"Record and plot: {out}")


def _measured(text: str) -> tuple[str, tuple[IndependentMasking, Objective]]:
    """An arm as it was typed: its name, masking and objective."""
    name, written = named_arm(text)
    if "(" not in written:
        check_name("arm", written, ARMS)
        return name, ARMS[written]
    typed = {"objective": ELBO(), **typed_masking(written)}
    masking, objective = typed["masking"], typed["objective"]
    if not isinstance(masking, IndependentMasking):
        raise ValueError(f"{text}: only an IndependentMasking has rates, masks and rows to tell apart")
    objective.check(masking)
    return name, (masking, objective)

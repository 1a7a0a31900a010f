"""Where does the noise of the loss and of the gradient come from?

By the law of total variance the variance of a batch's loss splits into A (which masks), B (which rates) and
C (which rows): A = E Var[. | rows, rates], B = E Var_rates E[. | rows, rates], C = Var_rows E[. | rows]
(arXiv 2511.18159). The same holds for the gradient, with the trace of its covariance. All arms are measured on
whole batches of equally many forwards, so that couplings and mirrored pairs count in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import cast

import torch
from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from torch import Tensor

from unmask import noise
from unmask.config import positive_int, require
from unmask.data.stream import RowStream
from unmask.evaluation.decomposition import Decomposition
from unmask.evaluation.estimate import bootstrap
from unmask.fitted_times import FittedTime, Measurement, RunningTime, is_fitted, measured_for
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.objectives import ELBO, Objective
from unmask.processes import IndependentMasking
from unmask.processes.guides import add_entropies
from unmask.processes.refit import evaluation_field, loss_and_gradient, measure_profile
from unmask.times import TimeDistribution
from unmask.token_rates import GIFT

Measured = IndependentMasking | tuple[IndependentMasking, Objective]
"""A masking, with an objective where that is not the ELBO."""


@dataclass(frozen=True)
class Nested:
    """How many draws: row sets, rates for each row set, masks for each of those."""

    row_sets: int = 32
    """Sets of rows."""
    rates: int = 4
    """Draws of the mask rates for each set of rows."""
    masks: int = 2
    """Draws of the masks for each of those."""

    def __post_init__(self) -> None:
        for name, least in (("row_sets", 3), ("rates", 2), ("masks", 2)):
            positive_int(name, getattr(self, name), least)


def decompose(
    model: MaskedDiffusionLM,
    masking: IndependentMasking,
    dataset: Dataset | RowStream,
    *,
    objective: Objective | None = None,
    batch_size: int = 16,
    nested: Nested | None = None,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Decomposition]:
    """Split the variance of a batch's loss and gradient into masks, rates and rows.

    Args:
        model: evaluated in fp32, without dropout.
        masking: the arm; a time distribution that learns must be given as it runs, after its fit.
        dataset: rows to draw batches from, or a stream of them (rows drawn unevenly).
        objective: ELBO by default.
        batch_size: forwards of a batch.
        nested: numbers of draws; every estimator of a part is unbiased for any of them.
        seed: of rows, rates and masks. Arms with equal seeds see the same rows where their units agree.
        progress: called after each row set.

    Returns:
        {"loss": ..., "gradient": ...}.

    Raises:
        ValueError: for another masking than an `IndependentMasking`, one that the objective refuses, and a time
            distribution that is yet to be fitted.
    """
    objective, nested = objective or ELBO(), nested or Nested()
    _check_parts(masking)
    _refuse_unfitted(masking)
    objective.check(masking)
    rows = dataset if isinstance(dataset, RowStream) else RowStream(dataset, seed)
    process = masking.start(rows, batch_size, seed)
    time, units = process.time, process.units
    loss_stats, gradient_stats = _Statistics(nested), _Statistics(nested)
    with evaluating(model):
        for row_set in range(nested.row_sets):
            clean = process.rows.take(units)
            losses, gradients = [], []
            for r in range(nested.rates):
                step, unit = row_set * nested.rates + r, torch.arange(units)
                quantile = masking.quantiles(
                    noise.slot_uniforms(seed, step, unit, purpose=noise.Purpose.EVALUATION),
                    noise.permutation(seed, step, units, purpose=noise.Purpose.STRATUM),
                )
                t = time.quantile(quantile)
                for m in range(nested.masks):
                    salt = 2 * (step * nested.masks + m)
                    field = evaluation_field(seed, clean, salt)
                    other = evaluation_field(seed, clean, salt + 1) if masking.reads_second_field else None
                    batch = masking.assemble(clean, t, time, field, other)
                    loss, gradient = loss_and_gradient(model, batch, objective)
                    losses.append(loss.cpu())
                    gradients.append(gradient.cpu())
            shape = (nested.rates, nested.masks, -1)
            loss_stats.add(torch.stack(losses).view(shape))
            gradient_stats.add(torch.stack(gradients).view(shape))
            progress()
    return {
        "loss": loss_stats.result(batch_size, seed),
        "gradient": gradient_stats.result(batch_size, seed),
    }


def compare_variance(
    model: MaskedDiffusionLM,
    dataset: Dataset,
    arms: Mapping[str, Measured],
    batch_size: int,
    nested: Nested,
    seed: int,
    console: Console | None = None,
) -> dict[str, dict[str, Decomposition]]:
    """Decompose the arms one by one; P-POTS is fitted to the model first, unless it is given as it runs.

    GIFT reads entropies.

    A terminal has a progress bar; elsewhere the first row set and every arm has a line with the time that is left.
    The first 64 rows serve the fit alone; batches are drawn from the others.

    Raises:
        ValueError: for rates that are fitted to the losses of training, unless they are given as they run, and for
            anything else that an arm refuses, before the first one is measured.
    """
    held_out = dataset.select(range(min(64, len(dataset) // 2)))
    others = dataset.select(range(len(held_out), len(dataset)))
    for name, (masking, objective) in (pairs := {name: _pair(arm) for name, arm in arms.items()}).items():
        try:
            _check_parts(masking)
            if _wanted(masking.time) is None:
                _refuse_unfitted(masking)
            objective.check(masking)
            masking.start(RowStream(others, seed), batch_size, seed)
        except ValueError as error:
            raise ValueError(f"arm '{name}': {error}") from None
    found, began = {}, perf_counter()
    with Progress(console=console) as progress:

        def row_set(task: TaskID, name: str) -> None:
            progress.advance(task)
            done = sum(each.percentage for each in progress.tasks) / 100
            if not progress.console.is_terminal and (progress.tasks[task].finished or done * nested.row_sets < 1.5):
                left = (perf_counter() - began) * (len(arms) / done - 1) / 60
                said = f"variance of {name}: {int(done)} of {len(arms)} arms, about {left:.1f} minutes left"
                progress.console.print(said, markup=False, highlight=False)

        for name, (masking, objective) in pairs.items():
            rows = add_entropies(model, others) if isinstance(masking.mask, GIFT) else others
            task = progress.add_task(escape(name), total=nested.row_sets)
            if (wanted := _wanted(masking.time)) is not None:
                rates = cast(FittedTime, masking.time).start()
                rates.refit(measure_profile(model, held_out, masking.mask, wanted, seed))
                masking = replace(masking, time=rates)
            found[name] = decompose(
                model,
                masking,
                rows,
                objective=objective,
                batch_size=batch_size,
                nested=nested,
                seed=seed,
                progress=partial(row_set, task, name),
            )
    return found


def _pair(arm: Measured) -> tuple[IndependentMasking, Objective]:
    return arm if isinstance(arm, tuple) else (arm, ELBO())


def _wanted(time: TimeDistribution) -> Measurement | None:
    """What must be measured for the law that a config starts. A law that runs is taken as it stands."""
    return None if isinstance(time, RunningTime) else measured_for(time)


def _check_parts(masking: object) -> None:
    """Raise ValueError for a masking whose noise has no such parts."""
    require(
        isinstance(masking, IndependentMasking),
        f"only an IndependentMasking has rates, masks and rows to tell apart, got {masking}",
    )


def _refuse_unfitted(masking: IndependentMasking) -> None:
    """Raise ValueError for a law that no fit has followed: it would be measured as what it begins as."""
    time = masking.time
    require(
        not is_fitted(time) or (isinstance(time, RunningTime) and time.fitted),
        f"{type(time).__name__} has not been fitted, so the rates that it begins with would be measured for it: give "
        "it as it runs, after its fit (`process.time`), or let `compare_variance` fit it, without online=True",
    )


class _Statistics:
    """Sums for the nested estimators; vectors of row sets are kept only through their inner products."""

    def __init__(self, nested: Nested) -> None:
        self.nested = nested
        self.within: list[Tensor] = []
        self.between: list[Tensor] = []
        self.means: list[Tensor] = []
        self.firsts: list[Tensor] = []

    def add(self, draws: Tensor) -> None:
        """Take the draws [rates, masks, P] of a row set."""
        by_rate = draws.mean(1)
        self.within.append(((draws - by_rate[:, None]) ** 2).sum((1, 2)).mean() / (self.nested.masks - 1))
        mean = by_rate.mean(0)
        self.between.append(((by_rate - mean) ** 2).sum() / (self.nested.rates - 1))
        self.means.append(mean)
        self.firsts.append(draws[0, 0].clone())

    def result(self, batch_size: int, seed: int) -> Decomposition:
        """Unbiased estimates of A, B, C and the total, times the batch size."""
        within, between = torch.stack(self.within).double(), torch.stack(self.between).double()
        means, firsts = torch.stack(self.means).double(), torch.stack(self.firsts).double()
        products, first_products = means @ means.T, firsts @ firsts.T

        def spread(gram: Tensor, index: Tensor) -> Tensor:
            """Sample variance of the vectors with this Gram matrix, resampled.

            A mean over pairs of different vectors: a pair of copies differs by nothing, and counting it would
            bias every resample downwards.
            """
            n, times = len(index), torch.bincount(index, minlength=len(gram)).double()
            return (n * (times @ gram.diagonal()) - times @ gram @ times) / (n**2 - times @ times).clamp(min=1)

        def masks(i: Tensor) -> Tensor:
            return within[i].mean()

        def rates(i: Tensor) -> Tensor:
            return between[i].mean() - within[i].mean() / self.nested.masks

        def rows(i: Tensor) -> Tensor:
            return spread(products, i) - between[i].mean() / self.nested.rates

        def total(i: Tensor) -> Tensor:
            return spread(first_products, i)

        count = len(within)
        every = torch.arange(count)
        signal = (products.sum() / count - spread(products, every)) / count
        estimates = [bootstrap(lambda i, f=f: batch_size * f(i), count, seed) for f in (masks, rates, rows, total)]
        return Decomposition(*estimates, signal=float(signal))

"""Loss and gradient of single rows against their mask rate: what time distributions are fitted to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, TokenBatch, widest
from unmask.config import require
from unmask.data.stream import RowStream
from unmask.distributed import is_sharded, reshard, sum_over_ranks
from unmask.fitted_times import Measurement, RateProfile, RunningTime
from unmask.masks import MaskRule
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.objectives import ELBO, Objective
from unmask.processes import ForwardProcess, IndependentMasking, Masking
from unmask.times import Uniform


def fitted_time_of(process: ForwardProcess) -> RunningTime | None:
    """The law of a process that is fitted to the model during training; None where it has none."""
    time = getattr(process, "time", None)
    return time if isinstance(time, RunningTime) else None


def refit_time(
    process: ForwardProcess,
    masking: Masking,
    model: MaskedDiffusionLM,
    held_out: Dataset | None,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
) -> dict[str, Any]:
    """Refit the time distribution of a process before the step that it is about to draw, where that is due.

    Args:
        process: running.
        masking: its config.
        model: in the ambient autocast mode.
        held_out: rows to measure on; only `PPOTS` wants them.
        seed: of the masks.
        rank: this process's number; every rank must call it.
        ranks: how many there are.

    Returns:
        What was learnt, as JSON values; nothing where no refit was due.

    Raises:
        ValueError: where rows are wanted and there are none.
    """
    time = fitted_time_of(process)
    if time is None or not time.due(getattr(process, "step", 0)):
        return {}
    wanted, profile = time.measures, None
    if wanted is not None:
        if held_out is None:
            raise ValueError(f"{masking} measures the model during training: give held-out rows")
        rule = cast(IndependentMasking, masking).mask
        profile = measure_profile(model, held_out, rule, wanted, seed, rank, ranks)
        reshard(model)  # FSDP2 keeps whole what was run without gradients, and would not see the next update
    time.refit(profile)
    return time.description()


def measure_profile(
    model: MaskedDiffusionLM,
    dataset: Dataset,
    rule: MaskRule,
    wanted: Measurement,
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
    chunk: int = 256,
) -> RateProfile:
    """Measure g(t) and v(t) of the current model, over rows and masks; the rates are shared out among the ranks.

    Args:
        model: in the ambient autocast mode. For the gradient it needs three gradients' worth of memory.
        dataset: held-out rows, at least 2; the first `wanted.rows` are used at every rate.
        rule: the mask rule in use.
        wanted: rates, numbers of rows and masks, and of what.
        seed: of the masks.
        rank: this process's number; every rank must call it, and all have the same profile, whatever their number.
        ranks: how many there are.
        chunk: rows of one forward; gradients are taken row by row.
    """
    require(len(dataset) >= 2, f"a profile needs at least 2 held-out rows, got {len(dataset)}")
    count = min(wanted.rows, len(dataset))
    clean = RowStream(dataset).rows(torch.arange(count).repeat(wanted.masks))
    clean = replace(clean, draw=torch.arange(wanted.masks).repeat_interleave(count))
    rates, masking = torch.tensor(wanted.rates).double(), IndependentMasking(mask=rule)
    moments, within = torch.zeros(len(rates), 2, dtype=torch.float64), wanted.variance == "within"
    shares = 1 if is_sharded(model) else ranks  # sharded weights are gathered for a forward by all ranks together
    with evaluating(model):
        for i, t in list(enumerate(rates))[rank % shares :: shares]:
            field = evaluation_field(seed, clean, i)
            batch = masking.assemble(clean, t.expand(len(clean)), Uniform(), field, None)
            moments[i] = torch.tensor(
                _gradient_moments(model, batch, wanted.masks, within)
                if wanted.moment == "gradient"
                else _moments(model, batch, chunk, wanted.masks, within)
            )
    means, variances = (sum_over_ranks(ranks, moments) * shares / ranks).unbind(1)
    return RateProfile(rates, means, variances)


def evaluation_field(seed: int, clean: TokenBatch, salt: int) -> Tensor:
    """[B, L] uniforms for the masks of a measurement, apart from those of training."""
    return noise.uniforms(seed, clean.row, clean.draw, clean.length, purpose=noise.Purpose.EVALUATION, salt=salt)


@torch.no_grad()
def row_losses(model: MaskedDiffusionLM, batch: MaskedBatch) -> Tensor:
    """[B] float64 Σ nll / (rate · density · L_eff) of each row, with rates as if drawn uniformly.

    The batch is on the CPU, the model runs on its own device.
    """
    require(batch.density is not None, "these losses are weighted by the mask rate, and this batch has none")
    assert batch.rate is not None
    assert batch.density is not None
    nll, device = torch.zeros(batch.masked.shape, dtype=torch.float64), model.device
    run = batch.masked.any(1)
    if run.any():
        nll[run] = model(batch[run].to(device)).nll.cpu().double()
    return (nll / (batch.rate * batch.density)).sum(1) / batch.clean.effective_length


def loss_and_gradient(model: MaskedDiffusionLM, batch: MaskedBatch, objective: Objective) -> tuple[Tensor, Tensor]:
    """The loss of a batch on the CPU and its gradient with respect to the trained parameters, as one vector [P].

    Both are on the model's device. The parameters' own `.grad` is neither read nor written.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = model.device
    weights = objective.weights(batch) / objective.normaliser(batch).float()
    run = batch.masked.any(1)
    if not run.any():
        return torch.zeros((), device=device), torch.zeros(sum(p.numel() for p in parameters), device=device)
    output = model(batch[run].to(device), weights[run].to(device), objective=objective)
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    vector = torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )
    return output.loss.detach(), vector


def _moments(
    model: MaskedDiffusionLM, batch: MaskedBatch, chunk: int, masks: int, within: bool
) -> tuple[float, float]:
    """g and v of the losses, as `_unbiased` has them; `batch` has `masks` draws of all rows, one after the other."""
    loss = torch.cat([row_losses(model, batch[s : s + chunk]) for s in range(0, len(batch), chunk)]).view(masks, -1)
    squares, of_rows, of_all = loss.square().sum(), loss.sum(0).square().sum(), loss.sum() ** 2
    return _unbiased(float(squares), float(of_rows), float(of_all), loss.shape[1], masks, within)


def _gradient_moments(model: MaskedDiffusionLM, batch: MaskedBatch, masks: int, within: bool) -> tuple[float, float]:
    """Length of the mean of the gradients, and trace of their covariance; `batch` as for `_moments`."""
    rows = len(batch) // masks
    total, squares, of_rows = 0.0, 0.0, 0.0
    for row in range(rows):
        of_row = 0.0
        for draw in range(row, len(batch), rows):
            _, gradient = loss_and_gradient(model, batch[draw : draw + 1], ELBO())
            of_row, squares = of_row + gradient, squares + _square(gradient)
        assert isinstance(of_row, Tensor)
        total, of_rows = total + of_row, of_rows + _square(of_row)
    assert isinstance(total, Tensor)
    return _unbiased(squares, of_rows, _square(total), rows, masks, within)


def _unbiased(
    squares: float, of_rows: float, of_all: float, rows: int, masks: int, within: bool
) -> tuple[float, float]:
    """Length of the mean and variance of one draw, from draws of the same rows under several masks.

    The masks of a row share what is the row's own, so the draws are no independent ones: v is the mean variance
    within a row and the variance between rows (one-way analysis of variance with random effects; Searle, Casella and
    McCulloch, Variance Components, 1992). g² and the total v add up to the plain second moment, and each is unbiased
    but where g² would come out below 0.

    Args:
        squares: Σ |x|² over all draws.
        of_rows: Σ over rows of |Σ over its masks of x|².
        of_all: |Σ x|².
        rows: how many, at least 2.
        masks: of each row.
        within: return the variance within rows for the total one; needs at least 2 masks.
    """
    count = rows * masks
    inside = squares - of_rows / masks  # squared distances from the mean of the own row
    of_means = (of_rows - of_all / rows) / (masks**2 * (rows - 1))  # variance of the rows' means, mask noise included
    second = squares / count
    total = min(second, of_means + inside / count)
    return (second - total) ** 0.5, inside / (rows * (masks - 1)) if within else total


def _square(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=widest(vector.device))) ** 2

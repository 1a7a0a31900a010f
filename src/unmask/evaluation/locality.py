"""Where is the loss? Against the mask rate, the distance to what is visible, and the radius of what may be seen.

The bell paper (arXiv 2605.13026) explains slow training by a locality bias: a token's information sits near it,
and random masks rarely leave a useful amount of it. Three curves show it, all in nats per masked token:

- by rate: loss against the masked share, split into the irreducible entropy of the data and the model's learnable
  error, E[nll] = H(token | visible) + KL. The first is known for a task with one solution (0) and for a known
  joint (its true conditionals as the reference); the loss of another good model only bounds it from above;
- by distance: loss against the number of positions from a masked token to the nearest visible one;
- by radius: loss where everything further than r positions from the token is masked as well. How much of what the
  model knows lies within r is the drop from radius 0 to r over the drop from radius 0 to all.

Taken for the checkpoints of a run they are learning curves: how fast each rate and each distance is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor

from unmask import noise
from unmask.batch import MaskedBatch, begins_of
from unmask.config import ours, positive_int
from unmask.evaluation.curve import Curve, Point
from unmask.evaluation.estimate import ratio
from unmask.evaluation.likelihood import LikelihoodConfig, losses, masked_nll
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.processes import IndependentMasking


@dataclass(frozen=True)
class LocalityConfig:
    """How locality is measured.

    Attributes:
        likelihood: rates, masks and seed.
        bins: of the masked share.
        nearest: distances shown one by one; further ones are put together.
        radii: radii, ascending; 0 shows nothing but the positions themselves.
    """

    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    bins: int = 10
    nearest: int = 8
    radii: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood.masking, IndependentMasking):
            raise ValueError(f"locality is measured with IndependentMasking, got {self.likelihood.masking}")
        positive_int("bins", self.bins)
        positive_int("nearest", self.nearest)
        for radius in self.radii:
            positive_int("radii", radius, least=0)
        if not self.radii or list(self.radii) != sorted(set(self.radii)):
            raise ValueError(f"radii must ascend, got {self.radii}")


def locality(
    model: MaskedDiffusionLM,
    dataset: Dataset,
    config: LocalityConfig | None = None,
    *,
    reference: MaskedDiffusionLM | float | None = None,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[Curve, Curve, Curve]:
    """Measure the three curves: by rate, by distance, by radius.

    Args:
        model: in its own precision, without dropout.
        dataset: rows with the columns `tokens` and `maskable`.
        config: numbers of draws and bins.
        reference: what the irreducible entropy is taken from: a model (exact if it knows the true conditionals, a
            bound otherwise), the number itself in nats per token (0: the whole context determines every token; not
            used by radius, where part of it is hidden), or None.
        batch_size: forwards at a time; changes no number.
        progress: called with the number of rows done since the last call.
    """
    config = config or LocalityConfig()
    samples = config.likelihood.samples
    by_rate, by_distance = _Bins(config.bins), _Bins(config.nearest + 1)
    by_radius = _Bins(len(config.radii) + 1)
    knows = reference if isinstance(reference, MaskedDiffusionLM) else None  # a number is of the whole context
    with evaluating(model):
        for batch, nll in losses(model, dataset, config.likelihood, batch_size=batch_size):
            floor = _floor(reference, batch, batch_size)
            share = batch.masked.sum(1) * config.bins / batch.clean.effective_length
            rate = (share.ceil().long().clamp(1, config.bins) - 1)[:, None].expand_as(nll)
            by_rate.add(batch.masked, rate, nll, floor, samples)
            distance = nearest_visible(batch.masked, batch.clean.attention, batch.clean.document)
            distance = distance.clamp(max=config.nearest + 1) - 1
            by_distance.add(batch.masked, distance, nll, floor, samples)
            target = _targets(batch, config.likelihood.seed)
            for i, radius in enumerate(config.radii):
                near = beyond(target, radius, batch, model.shifted)
                found = masked_nll(model, near, batch_size)
                by_radius.add(target, torch.full_like(distance, i), found, _floor(knows, near, batch_size), samples)
            floor = _floor(knows, batch, batch_size)
            by_radius.add(target, torch.full_like(distance, len(config.radii)), nll, floor, samples)
            progress(len(batch) // samples)
    edges = [f"{i / config.bins:.2g}–{(i + 1) / config.bins:.2g}" for i in range(config.bins)]
    steps = [*map(str, range(1, config.nearest + 1)), f">{config.nearest} or none"]
    return (
        by_rate.curve("masked share", edges),
        by_distance.curve("distance to a visible token", steps),
        by_radius.curve("visible within", [*map(str, config.radii), "all"]),
    )


def nearest_visible(masked: Tensor, attention: Tensor, document: Tensor | None = None) -> Tensor:
    """[B, L] int64 number of positions from each one to the nearest real token that is not masked.

    Where a row, or its `document` [B, L] that sees no other, shows nothing it is beyond every length.
    """
    length = masked.shape[1]
    place = torch.arange(length, device=masked.device).expand_as(masked)
    visible, far = attention & ~masked, 2**40
    left = place.masked_fill(~visible, -far).cummax(1).values
    right = place.masked_fill(~visible, far).flip(1).cummin(1).values.flip(1)
    if document is not None:
        begins = begins_of(document)
        first = place.where(begins, 0).cummax(1).values
        last = place.where(begins.roll(-1, 1), length).flip(1).cummin(1).values.flip(1)
        left, right = left.where(left >= first, -far), right.where(right <= last, far)
    return torch.minimum(place - left, right - place)


def beyond(target: Tensor, radius: int, batch: MaskedBatch, shifted: bool = False) -> MaskedBatch:
    """The batch with everything masked, prompt included, that lies further than `radius` from a row's target.

    Args:
        target: [B, L] bool, one position a row, or none.
        radius: 0 hides all but what a model needs: the first token of a row or document, of a shifted one.
        batch: what is masked in it stays so.
        shifted: keep first tokens visible.
    """
    place = torch.arange(target.shape[1], device=target.device)
    centre = (target * place).sum(1, keepdim=True)
    hidden = ((place - centre).abs() > radius) & batch.clean.attention & target.any(1, keepdim=True)
    if shifted:
        hidden &= ~begins_of(torch.zeros_like(place)[None] if batch.clean.document is None else batch.clean.document)
    return MaskedBatch(batch.clean, batch.masked | hidden, None, None, batch.block)


_TARGET = 1  # sets the choice of targets apart from the orders of unmask.evaluation.exact


def _targets(batch: MaskedBatch, seed: int) -> Tensor:
    """[B, L] bool: one of each row's masked positions, every one alike; none where nothing is masked."""
    clean = batch.clean
    uniform = noise.uniforms(
        seed, clean.row, clean.draw, clean.length, purpose=noise.Purpose.EVALUATION, salt=_TARGET
    )
    chosen = uniform.masked_fill(~batch.masked, -1).argmax(1)
    return torch.nn.functional.one_hot(chosen, clean.length).bool() & batch.masked


def _floor(reference: MaskedDiffusionLM | float | None, batch: MaskedBatch, batch_size: int) -> Tensor | None:
    if reference is None:
        return None
    if isinstance(reference, MaskedDiffusionLM):
        with evaluating(reference):
            return masked_nll(reference, batch, batch_size)
    return torch.full(batch.masked.shape, float(reference), dtype=torch.float64)


class _Bins:
    """Sums of losses by row and bin; rows are the unit of the intervals."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.loss: list[Tensor] = []
        self.floor: list[Tensor] = []
        self.tokens: list[Tensor] = []

    def add(self, where: Tensor, bins: Tensor, nll: Tensor, floor: Tensor | None, samples: int) -> None:
        """Add the tokens `where` [B, L] to their `bins` [B, L]; `samples` rows of the batch are one row."""

        def by_row(values: Tensor) -> Tensor:
            sums = torch.zeros(len(values), self.count, dtype=torch.float64)
            sums.scatter_add_(1, bins.clamp(0, self.count - 1), values.double() * where)
            return sums.view(-1, samples, self.count).sum(1)

        self.tokens.append(by_row(torch.ones_like(nll)))
        self.loss.append(by_row(nll))
        if floor is not None:
            self.floor.append(by_row(floor))

    def curve(self, against: str, labels: Sequence[str]) -> Curve:
        """Mean over the tokens of each bin, with the intervals of `ratio`."""
        loss, tokens = torch.cat(self.loss).T, torch.cat(self.tokens).T  # [bins, N]
        floor = torch.cat(self.floor).T if self.floor else None
        points = []
        for i, label in enumerate(labels):
            rows = int((tokens[i] > 0).sum())
            if rows < 2:
                continue
            points.append(
                Point(
                    label,
                    ratio(loss[i], tokens[i]),
                    None if floor is None else ratio(floor[i], tokens[i]),
                    None if floor is None else ratio(loss[i] - floor[i], tokens[i]),
                    int(tokens[i].sum()),
                    rows,
                )
            )
        return Curve(against, tuple(points))


ours(LocalityConfig)

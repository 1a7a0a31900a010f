"""Everything that the uniforms of an independent masking can be: quadratures of rates and cells of fields.

Rates and masks are pure functions of uniform numbers. A unit's rate comes from its coupled quantile, so the
expectation over it is an integral, taken by tanh-sinh quadrature on pieces split where the drawn count or a
threshold can jump. A mask rule sees a unit's field of uniforms through two things only: on which side of its rate r
and of 1 - r each number lies, and in which order they are. So the field space [0, 1]^L falls into finitely many
cells, and each has one representative here, with the cell's volume. Rules with a rate for each token see no order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.batch import TokenBatch
from unmask.processes import IndependentMasking
from unmask.times import TimeDistribution, Uniform


@dataclass(frozen=True)
class Plan:
    """Quantiles of all units that are independent of each other, once what the units share is given.

    Attributes:
        probability: [S] of each value of what they share.
        quantiles: for each unit [S, M], the nodes of its quantile given each value.
        weights: for each unit [M] the nodes' weights.
    """

    probability: Tensor
    quantiles: list[Tensor]
    weights: list[Tensor]


def plans(masking: IndependentMasking, time: TimeDistribution, units: int, length: int, nodes: int) -> Iterator[Plan]:
    """Yield plans whose probabilities add up to one.

    Args:
        masking: gives the coupling, and the rates at which masks can jump.
        time: its running time distribution.
        units: of the global batch.
        length: maskable positions of each.
        nodes: of the quadrature, on each piece.
    """
    splits = [n / length for n in range(1, length)] + [masking.mirror_below, 1 - masking.mirror_below, 0.5]
    splits += [b for s in (*time.breakpoints, *masking.mask.breakpoints) for b in (s, 1 - s)]
    cuts = time.cdf(torch.tensor(sorted({s for s in splits if 0 < s < 1}), dtype=torch.float64)).tolist()
    one = torch.ones(1, dtype=torch.float64)
    if masking.coupling == "antithetic":
        node, weight = _tanh_sinh([*cuts, *(1 - c for c in cuts)], nodes)
        pairs = units // 2
        uniform = torch.cartesian_prod(*[node] * pairs).view(-1, pairs).repeat_interleave(2, 1)
        probability = torch.cartesian_prod(*[weight] * pairs).view(-1, pairs).prod(1)
        quantile = torch.stack([masking.quantiles(u, torch.arange(units)) for u in uniform])
        yield Plan(probability, [quantile[:, unit, None] for unit in range(units)], [one] * units)
        return
    stratified = masking.coupling == "stratified"
    orders = list(itertools.permutations(range(units))) if stratified else [tuple(range(units))]
    for order in orders:
        plan = Plan(one / len(orders), [], [])
        for unit in range(units):
            node, weight = _tanh_sinh([units * c - order[unit] for c in cuts] if stratified else cuts, nodes)
            others = torch.full((units,), 0.5, dtype=torch.float64)
            uniform = [others.index_fill(0, torch.tensor(unit), u) for u in node.tolist()]
            quantile = [masking.quantiles(u, torch.tensor(order))[unit] for u in uniform]
            plan.quantiles.append(torch.stack(quantile)[None])
            plan.weights.append(weight)
        yield plan


def _tanh_sinh(cuts: list[float], nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of double-exponential quadrature on (0, 1) cut into pieces; bears end singularities."""
    s = torch.linspace(-3.4, 3.4, nodes, dtype=torch.float64)
    inner = 0.5 * torch.pi * s.sinh()
    low, density = torch.sigmoid(2 * inner), 0.5 * torch.pi * s.cosh() / inner.cosh() ** 2
    ends = torch.tensor([0.0, *sorted({c for c in cuts if 0 < c < 1}), 1.0], dtype=torch.float64)
    width = ends.diff()[:, None]
    points = ends[:-1, None] + width * low
    return points.flatten().clamp(1e-15, 1 - 1e-15), (width * density / density.sum()).flatten()


def cells(
    t: Tensor, length: int, places: Tensor, masking: IndependentMasking, unit: TokenBatch, first: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """For each rate: representatives [N, cells, L] of field space, of a second field if one is read, volumes.

    Args:
        t: [N] rates.
        length: L.
        places: [n] maskable positions of the unit, in its row.
        masking: of the unit.
        unit: the unit as a row of its own.
        first: where it begins in its row.
    """
    if masking.mask.by_token:
        rates, _ = masking.mask.rate_and_density(t, unit[torch.zeros(len(t), dtype=torch.int64)], Uniform())
        inside, volume = _intervals(rates[:, places - first])
    else:
        inside, volume = _orders_in_intervals(t, len(places))
    field = torch.full((*volume.shape, length), 0.5, dtype=torch.float64)
    field[:, :, places] = inside
    if not masking.reads_second_field:
        return field, None, volume
    one = torch.arange(volume.shape[1])
    one_of, other_of = (i.flatten() for i in torch.meshgrid(one, one, indexing="ij"))
    return field[:, one_of], field[:, other_of], volume[:, one_of] * volume[:, other_of]


def _cuts(rates: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 3] lower ends and widths of the intervals that r and 1 - r cut (0, 1) into."""
    low, high = torch.minimum(rates, 1 - rates), torch.maximum(rates, 1 - rates)
    ends = torch.stack([torch.zeros_like(low), low, high, torch.ones_like(low)], -1)
    return ends[..., :-1], ends.diff(dim=-1)


def _intervals(rates: Tensor) -> tuple[Tensor, Tensor]:
    """Every way to put one number for each rate into the intervals cut by it: [N, n] rates, [N, 3^n, n], [N, 3^n]."""
    low, width = _cuts(rates)
    count = rates.shape[1]
    which = torch.tensor(list(itertools.product(range(3), repeat=count)), dtype=torch.int64)
    places = torch.arange(count)
    return (low + width / 2)[:, places, which], width[:, places, which].prod(-1)


def _orders_in_intervals(t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every way to put `count` numbers into the intervals cut by t, and in order: [N, cells, count], [N, cells]."""
    which, share, orders = _ladders(count)
    low, width = _cuts(t)
    return low[:, which] + width[:, which] * share, width[:, which].prod(-1) / orders


@functools.cache
def _ladders(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each cell: in which interval each number lies and at which share of it, [cells, count]; and [cells] in how
    many orders as many numbers can lie in the same intervals."""
    which, shares, orders = [], [], []
    for sizes in itertools.product(range(count + 1), repeat=3):
        if sum(sizes) != count:
            continue
        ladder = [(piece, (i + 1) / (size + 1)) for piece, size in enumerate(sizes) for i in range(size)]
        for order in itertools.permutations(ladder):
            which.append([piece for piece, _ in order])
            shares.append([share for _, share in order])
            orders.append(math.prod(math.factorial(size) for size in sizes))
    return torch.tensor(which, dtype=torch.int64), torch.tensor(shares, dtype=torch.float64), torch.tensor(orders)

"""Is an estimator unbiased? Exact enumeration of everything that an independent masking can draw.

Rates and masks are pure functions of uniform numbers, and this checker supplies them to the production code
(cells.py): every cell of the field space, and a quadrature of the rates. Where rows are cut into blocks, the units
are the blocks. What a unit's rate and mask leave open, the other blocks of its row, is filled with rates and masks
that are nothing like its own: no weight may depend on them.

Your own time distribution, mask rule or objective can be checked the same way, as long as the rule keeps to
the comparisons that cells.py names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import scipy.special
import torch
from torch import Tensor

from unmask.batch import MaskedBatch, TokenBatch
from unmask.fitted_times import started
from unmask.masks import ExactCount, MaskRule
from unmask.objectives import ELBO, Objective, RowMean
from unmask.processes import Blockwise, IndependentMasking
from unmask.processes.blocks import Blocks
from unmask.testing.cells import cells, plans
from unmask.times import Uniform
from unmask.token_rates import TokenRates

Nll = Callable[[TokenBatch, Tensor], Tensor]
Law = dict[float, tuple[Tensor, Tensor]]
"""By value of Z [S]: its probability, and the mean of the loss sum there; S as in `Plan`."""


@dataclass(frozen=True)
class Expectation:
    """The exact expectation of an estimator, against the exact ELBO.

    Attributes:
        expected: of the loss Σ weight · nll / Z of a batch, in nats.
        exact: negative ELBO in nats per maskable token of the same rows.
        claims_unbiased: whether the library claims that the two are equal.
    """

    expected: float
    exact: float
    claims_unbiased: bool

    @property
    def bias(self) -> float:
        """expected - exact, in nats per token."""
        return self.expected - self.exact


def claims_unbiased(masking: IndependentMasking | Blockwise, objective: Objective) -> bool:
    """Whether the library claims that the objective's expectation is the ELBO per token (docs/estimators.md).

    Of rows, or blocks of rows, that have equally many maskable positions. With causal rows among them the expectation
    is a mean of two bounds, and neither.
    """
    try:
        objective.check(masking)
    except ValueError:
        return False
    if getattr(masking, "causal", 0):
        return False
    if isinstance(objective, RowMean):
        inner = _of_units(masking)
        return isinstance(inner.mask, ExactCount) and isinstance(inner.time, Uniform) and inner.pair != "complement"
    return isinstance(objective, ELBO)


def exact_elbo(
    clean: TokenBatch, nll: Nll, size: int | None = None, rule: MaskRule | None = None, low: float = 0.0
) -> Tensor:
    """[B] negative ELBO of each row in nats, Σ_n h_n / n, from all 2^L masks.

    Args:
        clean: B rows.
        nll: nats of the masked tokens, (rows [B], masked [B, L]) -> [B, L].
        size: with blocks of `size` positions: the sum of the blocks' ELBOs. `nll` must then predict each block from
            its own visible tokens and the clean blocks before it.
        rule: the bound of this rule's law of orders, where it has `TokenRates`; see docs/estimators.md.
        low: what `ELBO(low)` keeps of the bound: the part of rates in (low, 1], under the rule.

    Raises:
        ValueError: for a part of the bound of a rule with rates by token.
    """
    if isinstance(rule, TokenRates):
        if low:
            raise ValueError(f"the part of {rule}'s bound above a rate has no closed form here")
        return _ordered_elbo(clean, nll, size, rule)
    blocks = Blocks.of(clean.length, size)
    totals = torch.zeros(len(clean), dtype=torch.float64)
    for b, block in itertools.product(range(len(clean)), range(blocks.count)):
        places = (clean.maskable[b] & (blocks.numbers(clean.tokens)[b] == block)).nonzero()[:, 0].tolist()
        masks = torch.zeros(2 ** len(places), clean.length, dtype=torch.bool)
        for m, choice in enumerate(itertools.product([False, True], repeat=len(places))):
            masks[m, places] = torch.tensor(choice, dtype=torch.bool)
        rows = clean[torch.full((len(masks),), b)]
        loss, count = nll(rows, masks).sum(1), masks.sum(1)
        for n in range(1, len(places) + 1):
            totals[b] += float(loss[count == n].mean()) / n * _kept(n, len(places), rule, low)
    return totals


def _kept(n: int, length: int, rule: MaskRule | None, low: float) -> float:
    """The share of h_n / n in the part of the bound that rates in (low, 1] give.

    Bernoulli: C(L, n) ∫ t^(n - 1) (1 - t)^(L - n) dt over (low, 1] is 1/n times the regularised incomplete beta
    function's complement. Exact count: all of it where n is drawn at all, for its density makes up for the rest.
    """
    if isinstance(rule, ExactCount):
        return float(n > low * length)
    return 1 - float(scipy.special.betainc(n, length - n + 1, low))


def _ordered_elbo(clean: TokenBatch, nll: Nll, size: int | None, rule: TokenRates) -> Tensor:
    """The mean over orders of Σ nll, each token predicted from those revealed before it: no rate, no integral.

    Position i is hidden when a clock of the rate c_i rings, so the order of hiding is that of drawing without
    replacement in proportion to c_i; revealing runs backwards.
    """
    blocks = Blocks.of(clean.length, size)
    exponents = blocks.unfold(rule.exponents(blocks.units(clean)))
    totals = torch.zeros(len(clean), dtype=torch.float64)
    for b, block in itertools.product(range(len(clean)), range(blocks.count)):
        places = (clean.maskable[b] & (blocks.numbers(clean.tokens)[b] == block)).nonzero()[:, 0].tolist()
        clock = dict(zip(places, exponents[b, places].tolist(), strict=True))
        for order in itertools.permutations(places):
            probability, masks = 1.0, torch.zeros(len(order), clean.length, dtype=torch.bool)
            for n, place in enumerate(order):
                probability *= clock[place] / sum(clock[later] for later in order[n:])
                masks[n:, place] = True
            found = nll(clean[torch.full((len(order),), b)], masks)
            totals[b] += probability * float(found[torch.arange(len(order)), list(order)].sum())
    return totals


def expectation(
    masking: IndependentMasking | Blockwise, objective: Objective, clean: TokenBatch, nll: Nll, nodes: int = 60
) -> Expectation:
    """Expect an estimator over everything that `masking` can draw for a batch of one unit for each clean row.

    Args:
        masking: the combination to check. Its time distribution may be a running one. A block size that changes
            is taken as at step 0.
        objective: gives weights and Z.
        clean: rows; all, and all their blocks, with the same number of maskable positions, at most 5 (the cells
            grow like its factorial).
        nll: nats of the masked tokens, (rows [B], masked [B, L]) -> [B, L]; see `exact_elbo`.
        nodes: quadrature nodes on each piece.

    Returns:
        The expectation, exact but for quadrature (about 1e-9 for smooth densities).

    Raises:
        ValueError: where rows or blocks differ in their number of maskable positions, or some rows are causal.
    """
    inner = _of_units(masking)
    time = started(inner.time)
    blocks = masking.cut(clean.length) if isinstance(masking, Blockwise) else Blocks.of(clean.length)
    number = blocks.numbers(clean.tokens)[0]
    inside = [clean.maskable[row] & (number == b) for row in range(len(clean)) for b in range(blocks.count)]
    if len({int(flags.sum()) for flags in inside}) != 1:
        raise ValueError("all rows, and all their blocks, must have the same number of maskable positions")
    places = torch.stack([flags.nonzero()[:, 0] for flags in inside])
    units, row_of = len(inside), torch.arange(len(clean)).repeat_interleave(blocks.count)
    table = _table(clean[row_of], places, nll)

    def outcomes(unit: int, quantiles: Tensor, weight: Tensor) -> Law:
        """The law of what the unit adds to Z and to the loss: [S, M] nodes of its quantile, [M] their weights."""
        quantile, node_of = quantiles.unique(return_inverse=True)
        t = time.quantile(quantile)
        block = unit % blocks.count
        mine = blocks.units(clean[row_of[unit : unit + 1]])[block : block + 1]
        field, other, volume = cells(t, clean.length, places[unit], inner, mine, block * blocks.size)
        t = t.repeat_interleave(field.shape[1])
        rows, field = clean[row_of[unit].expand(len(t))], field.flatten(0, 1)
        other = None if other is None else other.flatten(0, 1)
        if isinstance(masking, Blockwise):
            rates = torch.linspace(0.3, 0.6, blocks.count, dtype=torch.float64).repeat(len(t), 1)
            rates[:, block] = t
            folded = None if other is None else blocks.fold(other)
            batch = masking.assemble(rows, blocks, rates.flatten(), time, blocks.fold(field), folded)
        else:
            batch = masking.assemble(rows, t, time, field, other)
        per_unit = len(batch) // len(t)
        code = (batch.masked[:, places[unit]] * 2 ** torch.arange(places.shape[1])).sum(1)
        total = (objective.weights(batch).double() * table[unit, code]).sum(1).view(-1, per_unit).sum(1)
        z = _normalisers(objective, _only(batch, inside[unit]), per_unit)
        law = {}
        for value in z.unique().tolist():
            there = (z == value).view_as(volume) * volume
            each = torch.stack([there.sum(1), (there * total.view_as(volume)).sum(1)])  # [2, nodes]
            probability, loss = (each[:, node_of] * weight).sum(-1)
            law[value] = probability, loss
        return law

    expected = 0.0
    for plan in plans(inner, time, units, places.shape[1], nodes):
        one, none = torch.ones_like(plan.probability), torch.zeros_like(plan.probability)
        combined: Law = {0.0: (one, none)}
        for unit, (quantiles, weight) in enumerate(zip(plan.quantiles, plan.weights, strict=True)):
            combined = _convolve(combined, outcomes(unit, quantiles, weight))
        mean = sum((s / z for z, (_, s) in combined.items() if z > 0), none)
        expected += float((plan.probability * mean).sum())
    low = objective.low if isinstance(objective, ELBO) else 0.0
    exact = float(exact_elbo(clean, nll, blocks.size, inner.mask, low).sum() / clean.effective_length.sum())
    return Expectation(expected, exact, claims_unbiased(masking, objective))


def draws(masking: IndependentMasking, clean: TokenBatch, nodes: int = 24) -> tuple[MaskedBatch, Tensor, Tensor]:
    """Everything that `masking` can draw for each of the rows by itself; couplings and pairs are left out.

    Returns:
        The batch of all draws, N rows; [N] which clean row each is of; [N] float64 its probability given that row,
        with a quadrature of the rates of `nodes` nodes on each piece.
    """
    single = replace(masking, coupling="independent", pair=None, mirror_below=1.0)
    time, fields, rates, rows, weights = started(masking.time), [], [], [], []
    for row in range(len(clean)):
        places = clean.maskable[row].nonzero()[:, 0]
        (plan,) = plans(single, time, 1, max(1, len(places)), nodes)
        t, weight = time.quantile(plan.quantiles[0][0]), plan.weights[0]
        field, _, volume = cells(t, clean.length, places, single, clean[row : row + 1], 0)
        fields.append(field.flatten(0, 1))
        rates.append(t.repeat_interleave(field.shape[1]))
        rows.append(torch.full((len(fields[-1]),), row))
        weights.append((weight[:, None] * volume).flatten())
    field, t, row, weight = (torch.cat(parts) for parts in (fields, rates, rows, weights))
    return single.assemble(clean[row], t, time, field, None), row, weight


def _of_units(masking: IndependentMasking | Blockwise) -> IndependentMasking:
    """The masking of a row, or of a block."""
    inner = masking.masking if isinstance(masking, Blockwise) else masking
    if not isinstance(inner, IndependentMasking):
        raise ValueError(f"{masking} draws no masks independently of the model: there is nothing to enumerate")
    if getattr(masking, "causal", 0):
        raise ValueError(
            f"{masking} trains some rows from left to right, and no draw decides which: enumerate the blocks with "
            "causal=0; the loss of a causal row is its exact negative log-likelihood, whatever is drawn"
        )
    return inner


def _only(batch: MaskedBatch, inside: Tensor) -> MaskedBatch:
    """The batch as if nothing outside the positions `inside` [L] could be masked: what one block adds to Z."""
    clean = replace(batch.clean, maskable=batch.clean.maskable & inside)
    return replace(batch, clean=clean, masked=batch.masked & inside)


def check_unbiased(
    masking: IndependentMasking | Blockwise,
    objective: Objective,
    clean: TokenBatch,
    nll: Nll,
    tolerance: float = 1e-6,
) -> Expectation:
    """Raise AssertionError unless the estimator's expectation is the exact ELBO; return the figures."""
    found = expectation(masking, objective, clean, nll)
    if abs(found.bias) > tolerance:
        raise AssertionError(
            f"{objective} with {masking} expects {found.expected:.8f} nats per token, the exact ELBO is "
            f"{found.exact:.8f}: biased by {found.bias:+.2e}"
        )
    return found


def _table(clean: TokenBatch, places: Tensor, nll: Nll) -> Tensor:
    """[U, 2^n, L] nats of every mask of every row; bit i of a mask's number is the row's i-th maskable position."""
    masks = (torch.arange(2 ** places.shape[1])[:, None] >> torch.arange(places.shape[1])) % 2 == 1
    found = []
    for unit in range(len(clean)):
        masked = torch.zeros(len(masks), clean.length, dtype=torch.bool)
        masked[:, places[unit]] = masks
        found.append(nll(clean[torch.full((len(masks),), unit)], masked))
    return torch.stack(found)


def _normalisers(objective: Objective, batch: MaskedBatch, per_unit: int) -> Tensor:
    """[units] contribution to Z of each unit. Asked once for each kind of unit: Z sees masks and rows alone."""
    kinds, which = batch.masked.view(len(batch) // per_unit, -1).unique(dim=0, return_inverse=True)
    first = torch.stack([(which == k).nonzero()[0, 0] for k in range(len(kinds))]) * per_unit
    values = torch.stack([objective.normaliser(batch[int(i) : int(i) + per_unit]) for i in first])
    return values.round(decimals=9)[which]


def _convolve(left: Law, right: Law) -> Law:
    """Join two independent parts: Z adds up, and so does the mean loss given Z."""
    joined: Law = {}
    for (z1, (p1, s1)), (z2, (p2, s2)) in itertools.product(left.items(), right.items()):
        p, s = joined.get(z := round(z1 + z2, 9), (0.0, 0.0))
        joined[z] = p + p1 * p2, s + s1 * p2 + p1 * s2
    return joined

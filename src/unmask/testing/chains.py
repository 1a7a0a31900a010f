"""Does PUMA's chain meet the states of inference? Proposition 1 of arXiv 2602.10314 by exact enumeration.

On a tabular world every row, every random start, every target of a stage and every order of the noise can be
listed. This supplies all of them to the production code (`Chain`), and sets the law of the chain's states
against that of idealised inference with the same frozen scores, policy and start: inference that reveals the
chosen set with tokens from their joint posterior. The two are equal for every policy that looks at the visible
state and its noise alone; a policy that peeks at hidden tokens is found out.

Inference is written anew here, in plain Python, so that a mistake in the chain cannot hide in both.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.batch import Scores, TokenBatch
from unmask.noise import Purpose
from unmask.policies import STATISTICS, resolve
from unmask.processes import Chain, ProgressiveUnmasking
from unmask.schedules import integer_at
from unmask.testing.tabular import TabularWorld

Predict = Callable[[Tensor, Tensor], Tensor]
State = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class ChainStates:
    """The law of a chain after some steps, over the n states it can be in; a chain that ended is in none.

    Attributes:
        string: [n] int64 index of the row among the world's strings.
        revealed: [n, L] bool.
        stage: [n] int64.
        probability: [n] float64; it sums to the probability that the chain is still running.
    """

    string: Tensor
    revealed: Tensor
    stage: Tensor
    probability: Tensor


def chain_states(
    config: ProgressiveUnmasking,
    world: TabularWorld,
    predict: Predict | None = None,
    entry: int = 0,
    rows: Callable[[Tensor], TokenBatch] | None = None,
) -> list[ChainStates]:
    """Enumerate the states of the production chain, step by step until every chain has ended.

    Args:
        config: of the chain; K is that of step 0. Its policy may look at the order of its noise, not at the values.
        world: rows are its strings, with their probabilities.
        predict: (tokens [B, L], masked [B, L]) -> log-probabilities [B, L, V] that the scores are taken from; by
            default the world's denoiser. It is frozen.
        entry: stage at which rows enter.
        rows: makes rows of strings [B, L]; by default `world.rows`.

    Returns:
        The law of the states that are trained on at steps 0, 1, ...
    """
    predict, rows = predict or world.log_probabilities, rows or world.rows
    strings, weight = world.strings()
    orders, lengths = _orders(world.length), set(rows(strings).effective_length.tolist())
    occur = weight.nonzero()[:, 0]  # contexts of the others have no conditionals
    now = ChainStates(
        occur,
        torch.zeros_like(strings[occur], dtype=torch.bool),
        torch.full_like(occur, entry),
        weight[occur],
    )
    now, within, order = _expanded(config, now, now.stage, orders, lengths)
    chain = _supplied(config, {Purpose.MASK: order, Purpose.STAGE: within})
    revealed = chain.entry(rows(strings[now.string]), now.stage)
    now = _gathered(now.string, revealed, now.stage, now.probability)
    found = []
    while len(now.string):
        found.append(now)
        now, within, order = _expanded(config, now, now.stage + 1, orders, lengths)
        clean = rows(strings[now.string])
        chain = _supplied(config, {Purpose.REVEAL: order, Purpose.STAGE: within})
        scores = _scores(predict, clean.tokens, clean.maskable & ~now.revealed)
        revealed, stage, _ = chain.advance(clean, now.revealed, now.stage, scores)
        on = ~chain.ended(clean, revealed, stage)
        now = _gathered(now.string[on], revealed[on], stage[on], now.probability[on])
    return found


def inference_states(
    config: ProgressiveUnmasking,
    world: TabularWorld,
    predict: Predict | None = None,
    entry: int = 0,
    joint: bool = True,
) -> list[dict[State, float]]:
    """Enumerate the states of inference that knows no row: tokens are drawn when they are revealed.

    Args:
        config: as for `chain_states`.
        world: whose joint posterior the revealed tokens are drawn from.
        predict: as for `chain_states`; it is given the mask token where a token is hidden.
        entry: stage of the random start.
        joint: draw the tokens of one step from their joint posterior; else each from its own, independently, as
            samplers do.

    Returns:
        For each step, the probability of each (tokens with the mask token where hidden, stage).
    """
    predict = predict or world.log_probabilities
    length, hidden = world.length, world.mask_token_id
    stages, everything = integer_at(config.stages, 0), (hidden,) * length
    lowest = config.time.support[0]
    orders = [tuple(order) for order in _orders(length).tolist()]

    def targets(stage: int) -> Iterator[tuple[int, float]]:
        most = math.ceil((1 - lowest) * length - 1e-9) - 1
        for middle, width in _pieces(config, stages, stage, {length}):
            level = min(1.0, (stage + middle) / stages)
            rate = float(config.time.quantile(torch.tensor(1 - level, dtype=torch.float64)))
            yield min(round((1 - rate) * length), most), width

    now: dict[State, float] = defaultdict(float)
    for count, width in targets(entry):
        starts = list(itertools.combinations(range(length), count))
        for places in starts:
            for visible, p in _filled(world, everything, places, joint=True):
                now[visible, entry] += width / len(starts) * p
    found = []
    while now:
        found.append(dict(now))
        following: dict[State, float] = defaultdict(float)
        for (visible, stage), probability in now.items():
            masked = [place for place in range(length) if visible[place] == hidden]
            tokens = torch.tensor([visible])
            scores = _scores(predict, tokens, tokens == hidden)
            sure = set()
            if config.threshold is not None:
                sure = {p for p in masked if float(scores.log_confidence[0, p]) > math.log(config.threshold)}
            chosen: dict[tuple[tuple[int, ...], bool], float] = defaultdict(float)
            for order in orders:
                priority = resolve(config.policy)(scores, torch.tensor([order], dtype=torch.float64))[0].tolist()
                ranked = sorted(masked, key=lambda place: (-priority[place], place))
                for target, width in targets(stage + 1):
                    first = set(ranked[: max(1, target - (length - len(masked)))])
                    chosen[tuple(sorted(first | sure)), bool(sure - first)] += width / len(orders)
            for (places, overtook), p in chosen.items():
                count = length - len(masked) + len(places)
                ratio = count / length
                passed = 1 - float(config.time.cdf(torch.tensor(1 - ratio, dtype=torch.float64)))
                later = max(stage + 1, math.floor(stages * passed + 1e-9)) if overtook else stage + 1
                if later >= stages or 1 - ratio <= lowest:
                    continue
                for state, q in _filled(world, visible, places, joint):
                    following[state, later] += probability * p * q
        now = following
    return found


def chain_difference(
    config: ProgressiveUnmasking,
    world: TabularWorld,
    predict: Predict | None = None,
    entry: int = 0,
    joint: bool = True,
) -> float:
    """Largest difference in probability between chain and inference, over all steps and states."""
    strings, _ = world.strings()
    chain = [
        _summed(
            (tuple(t if r else world.mask_token_id for t, r in zip(strings[s].tolist(), seen, strict=True)), stage, p)
            for s, seen, stage, p in zip(
                law.string.tolist(), law.revealed.tolist(), law.stage.tolist(), law.probability.tolist(), strict=True
            )
        )
        for law in chain_states(config, world, predict, entry)
    ]
    inference = inference_states(config, world, predict, entry, joint)
    return max(
        abs(ours.get(state, 0.0) - theirs.get(state, 0.0))
        for ours, theirs in itertools.zip_longest(chain, inference, fillvalue={})
        for state in {*ours, *theirs}
    )


def check_chain(config: ProgressiveUnmasking, world: TabularWorld, predict: Predict | None = None) -> None:
    """Check that rows entering at any stage meet the states of inference, to 1e-9.

    Raises:
        AssertionError: where they do not: the policy, or the scores, look at hidden tokens.
    """
    for entry in range(integer_at(config.stages, 0)):
        difference = chain_difference(config, world, predict, entry)
        if difference > 1e-9:
            raise AssertionError(
                f"{config}, entered at stage {entry}: the chain's states differ from inference's by {difference:.3g} "
                "in probability; does the policy look at hidden tokens?"
            )


@dataclass(frozen=True)
class _Supplied(Chain):
    """A chain whose uniform numbers are handed in."""

    supply: dict[Purpose, Tensor] = field(default_factory=dict)

    def uniforms(self, units: TokenBatch, length: int, purpose: Purpose, stage: Tensor | None = None) -> Tensor:
        return self.supply[purpose]


def _supplied(config: ProgressiveUnmasking, supply: dict[Purpose, Tensor]) -> _Supplied:
    law = config.chain(integer_at(config.stages, 0), seed=0)
    return _Supplied(**vars(law), supply=supply)


def _orders(length: int) -> Tensor:
    """[L!, L] every order of L uniform numbers."""
    every = torch.tensor(list(itertools.permutations(range(length))), dtype=torch.float64)
    return (every + 1) / (length + 1)


def _pieces(config: ProgressiveUnmasking, stages: int, stage: int, lengths: set[int]) -> list[tuple[float, float]]:
    """Pieces of [0, 1] on which the target of `stage`, round((1 - Q(1 - (stage + w)/K)) · L), is constant for all L.

    Each as (middle, width). The target changes where the mask rate passes 1 - (n + 1/2) / L.
    """
    rates = 1 - torch.cat([(torch.arange(length, dtype=torch.float64) + 0.5) / length for length in lengths])
    bounds = (stages * (1 - config.time.cdf(rates)) - stage).tolist()
    cuts = [0.0, *sorted(cut for cut in bounds if 0 < cut < 1), 1.0]
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(cuts) if b - a > 1e-12]


def _expanded(
    config: ProgressiveUnmasking, now: ChainStates, aims: Tensor, orders: Tensor, lengths: set[int]
) -> tuple[ChainStates, Tensor, Tensor]:
    """Every state with every piece of its target [n, 1] and every order of the noise [n, L]."""
    stages = integer_at(config.stages, 0)
    pieces = {aim: _pieces(config, stages, aim, lengths) for aim in set(aims.tolist())}
    index, within, share = zip(
        *((i, *piece) for i, aim in enumerate(aims.tolist()) for piece in pieces[aim]), strict=True
    )
    count = len(orders)
    at = torch.tensor(index).repeat_interleave(count)
    p = now.probability[at] * torch.tensor(share, dtype=torch.float64).repeat_interleave(count) / count
    expanded = ChainStates(now.string[at], now.revealed[at], now.stage[at], p)
    middle = torch.tensor(within, dtype=torch.float64).repeat_interleave(count)[:, None]
    return expanded, middle, orders.repeat(len(index), 1)


def _gathered(string: Tensor, revealed: Tensor, stage: Tensor, probability: Tensor) -> ChainStates:
    """States with the probabilities of equal ones added up."""
    key = torch.cat([string[:, None], revealed.long(), stage[:, None]], 1)
    unique, place = key.unique(dim=0, return_inverse=True)
    total = torch.zeros(len(unique), dtype=torch.float64).index_add(0, place, probability)
    return ChainStates(unique[:, 0], unique[:, 1:-1].bool(), unique[:, -1], total)


def _scores(predict: Predict, tokens: Tensor, masked: Tensor) -> Scores:
    """Scores of each row; a row that occurs more than once is predicted once."""
    length = tokens.shape[1]
    unique, place = torch.cat([tokens, masked.long()], 1).unique(dim=0, return_inverse=True)
    log_p = predict(unique[:, :length], unique[:, length:].bool())
    return Scores.from_logits(log_p[place], needs=STATISTICS)


def _filled(
    world: TabularWorld, visible: tuple[int, ...], places: tuple[int, ...], joint: bool
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every filling of `places` with its probability given the visible tokens."""
    index = tuple(slice(None) if token == world.mask_token_id else token for token in visible)
    given = world.joint[index] / world.joint[index].sum()
    masked = [place for place, token in enumerate(visible) if token == world.mask_token_id]

    def law(kept: tuple[int, ...]) -> Tensor:
        others = [axis for axis, place in enumerate(masked) if place not in kept]
        return given.sum(others) if others else given

    for tokens in itertools.product(range(world.vocab_size), repeat=len(places)):
        if joint:
            p = float(law(places)[tokens])
        else:
            p = math.prod(float(law((place,))[token]) for place, token in zip(places, tokens, strict=True))
        if p > 0:
            state = list(visible)
            for place, token in zip(places, tokens, strict=True):
                state[place] = token
            yield tuple(state), p


def _summed(states: Iterator[tuple[tuple[int, ...], int, float]]) -> dict[State, float]:
    total: dict[State, float] = defaultdict(float)
    for visible, stage, p in states:
        total[visible, stage] += p
    return total

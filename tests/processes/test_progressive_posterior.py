"""Propositions 1 and 2 of arXiv 2602.10314 through the whole process, with pools of any size.

1: The states that chains are trained in are those of inference. 2: A chain that looks at the visible state alone
keeps the data's posterior.
"""

import itertools
import math
from collections import defaultdict

import datasets
import pytest
import torch

from unmask import Clipped, ProgressiveUnmasking, RowStream, Scores
from unmask.testing import TabularWorld, inference_states

COPIES = [5, 1, 2, 4, 1, 3, 2, 6]  # of each string of three bits: a joint distribution without independence
STRINGS = list(itertools.product([0, 1], repeat=3))
HIDDEN, BATCH = 2, 48
PLACE = torch.tensor([9, 3, 1])
WORLD = TabularWorld(torch.tensor(COPIES, dtype=torch.float64).view(2, 2, 2), error=1.0, seed=2)


@pytest.fixture(scope="module")
def bits():
    tokens = [list(string) for string, copies in zip(STRINGS, COPIES, strict=True) for _ in range(copies)]
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 3] * len(tokens)})


@pytest.fixture(scope="module")
def logits():
    """[27, 3, 2] what the world's denoiser, which is wrong, predicts in each visible state."""
    every = torch.tensor(list(itertools.product([0, 1, HIDDEN], repeat=3)))
    masked = every == HIDDEN
    return WORLD.log_probabilities(every.masked_fill(masked, 0), masked)


def largest_deviation(dataset, config, score, steps=250, pool=BATCH):
    """Largest z of the share of ones at a masked position, over all visible states and masked positions."""
    process = config.start(RowStream(dataset), pool)
    ones, count = torch.zeros(27, 3), torch.zeros(27, 3)
    for _ in range(steps):
        batch = process.draw()
        state = (batch.noisy(HIDDEN) * PLACE).sum(1)
        count.index_add_(0, state, batch.masked.float())
        ones.index_add_(0, state, (batch.masked * batch.clean.tokens).float())
        process.observe(Scores(score(state, batch.clean.tokens)))
    largest, seen = 0.0, 0
    for state in itertools.product([0, 1, HIDDEN], repeat=3):
        code = int((torch.tensor(state) * PLACE).sum())
        weight = [
            c * all(v in (HIDDEN, b) for v, b in zip(state, string, strict=True))
            for c, string in zip(COPIES, STRINGS, strict=True)
        ]
        for position in range(3):
            n = float(count[code, position])
            if n < 50:
                continue
            p = sum(w * string[position] for w, string in zip(weight, STRINGS, strict=True)) / sum(weight)
            largest = max(largest, abs(float(ones[code, position]) - n * p) / (n * p * (1 - p)) ** 0.5)
            seen += 1
    assert seen >= 12
    return largest


@pytest.mark.parametrize(
    ("threshold", "pool", "seed"),
    [(None, "batch", 0), (0.6, "batch", 1), (0.6, 2 * BATCH, 0), (None, 8 * BATCH, 1)],
)
def test_masked_tokens_keep_the_posterior_of_the_data_given_the_visible_ones(bits, threshold, pool, seed):
    config = ProgressiveUnmasking(stages=3, threshold=threshold, pool=pool)
    table = torch.rand(27, 3, generator=torch.Generator().manual_seed(seed)).double().log()
    assert largest_deviation(bits, config, lambda state, tokens: table[state]) < 4.5


@pytest.mark.parametrize("pool", ["batch", 8 * BATCH])
def test_scores_that_look_at_the_hidden_tokens_bend_the_posterior(bits, pool):
    """The control: the same measurement sees a chain that reveals ones first."""
    config = ProgressiveUnmasking(stages=3, pool=pool)
    assert largest_deviation(bits, config, lambda state, tokens: tokens.double() - 2, steps=200) > 8


def visits(dataset, config, score, steps):
    """What chains that entered at stage 0 were trained in: for each visit, the number of chains that could have come
    so far, and how often each (visible tokens, stage) was met."""
    process = config.start(RowStream(dataset), BATCH)
    sweeps = steps // process.turns
    visit = torch.full((process.pool,), -1)  # of the chain at each place; below 0: it entered at another stage
    entered, met = torch.zeros(sweeps), [defaultdict(int) for _ in range(sweeps)]
    for step in range(sweeps * process.turns):
        turn, stage, batch = process.turn, process.stage[process.turn, 0].tolist(), process.draw()
        tokens = batch.noisy(HIDDEN)
        for number, row, at in zip(visit[turn].tolist(), tokens.tolist(), stage, strict=True):
            if number >= 0:
                met[number][tuple(row), at] += 1
        process.observe(score((tokens * PLACE).sum(1), batch.clean.tokens))
        now = process.clean[turn]
        fresh = (now.row != batch.clean.row) | (now.draw != batch.clean.draw)
        visit[turn] = torch.where(fresh, 0, torch.where(visit[turn] < 0, -1, visit[turn] + 1))
        entered[step // process.turns] += fresh.sum()
    # A chain that enters in one sweep makes its visit number v in the v-th sweep after the next.
    could = [float(entered[: max(0, sweeps - 1 - number)].sum()) for number in range(sweeps)]
    return could, met


def distance_from_inference(dataset, config, score, steps=200):
    """Largest z between how often a state was met at a visit and its probability in inference."""
    could, met = visits(dataset, config, score, steps)
    largest, seen = 0.0, 0
    for number, law in enumerate(inference_states(config, WORLD)):
        n = could[number]
        if not set(met[number]) <= set(law):
            return math.inf  # a state that inference never meets
        for state, p in law.items():
            if n * p >= 20 and n * (1 - p) >= 20:
                largest = max(largest, abs(met[number][state] - n * p) / (n * p * (1 - p)) ** 0.5)
                seen += 1
    assert seen >= 12
    return largest


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 3, "pool": "batch"},
        {"stages": 3, "pool": 4 * BATCH},
        {"stages": 4, "pool": 3 * BATCH, "threshold": 0.7, "policy": "margin"},
        {"stages": 3, "pool": 2 * BATCH, "policy": "entropy", "time": Clipped(0.3, 1.0)},
    ],
    ids=str,
)
def test_the_states_that_are_trained_are_those_of_inference(bits, logits, options):
    config = ProgressiveUnmasking(**options)

    def score(state, tokens):
        return Scores.from_logits(logits[state], needs=("log_confidence", "margin", "entropy"))

    assert distance_from_inference(bits, config, score) < 4.5


def test_scores_that_look_at_the_hidden_tokens_lead_to_other_states(bits, logits):
    def peek(state, tokens):
        surer = logits[state] * (1 + 2 * (tokens == 1))[..., None]
        return Scores.from_logits(surer, needs=("log_confidence", "margin", "entropy"))

    assert distance_from_inference(bits, ProgressiveUnmasking(stages=3, pool=4 * BATCH), peek) > 8

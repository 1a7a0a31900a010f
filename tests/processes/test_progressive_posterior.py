"""Proposition 2 of arXiv 2602.10314: a chain that looks at the visible state alone keeps the data's posterior."""

import itertools

import datasets
import pytest
import torch

from unmask import ProgressiveUnmasking, RowStream, Scores

COPIES = [5, 1, 2, 4, 1, 3, 2, 6]  # of each string of three bits: a joint distribution without independence
STRINGS = list(itertools.product([0, 1], repeat=3))
HIDDEN = 2


@pytest.fixture(scope="module")
def bits():
    tokens = [list(string) for string, copies in zip(STRINGS, COPIES, strict=True) for _ in range(copies)]
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 3] * len(tokens)})


def largest_deviation(dataset, config, score, steps=500, pool=48):
    """Largest z of the share of ones at a masked position, over all visible states and masked positions."""
    process = config.start(RowStream(dataset), pool)
    ones, count = torch.zeros(27, 3), torch.zeros(27, 3)
    place = torch.tensor([9, 3, 1])
    for _ in range(steps):
        batch = process.draw()
        state = (batch.noisy(HIDDEN) * place).sum(1)
        count.index_add_(0, state, batch.masked.float())
        ones.index_add_(0, state, (batch.masked * batch.clean.tokens).float())
        process.observe(Scores(score(state, batch.clean.tokens)))
    largest, seen = 0.0, 0
    for state in itertools.product([0, 1, HIDDEN], repeat=3):
        code = int((torch.tensor(state) * place).sum())
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


@pytest.mark.parametrize("config", [ProgressiveUnmasking(stages=3), ProgressiveUnmasking(stages=3, threshold=0.6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_tokens_keep_the_posterior_of_the_data_given_the_visible_ones(bits, config, seed):
    table = torch.rand(27, 3, generator=torch.Generator().manual_seed(seed)).double().log()
    assert largest_deviation(bits, config, lambda state, tokens: table[state]) < 4.5


def test_scores_that_look_at_the_hidden_tokens_bend_the_posterior(bits):
    """The control: the same measurement sees a chain that reveals ones first."""
    assert largest_deviation(bits, ProgressiveUnmasking(stages=3), lambda state, tokens: tokens.double() - 2) > 10

"""Proposition 2 of arXiv 2602.10314 block by block: chains of blocks keep the data's posterior, in any pool.

Given its own visible tokens and the clean blocks before it, a masked token of a block is distributed as in the
data, though the model's scores chose what is visible, and though rows wait until all their blocks have ended. It is
so also at every step around one at which blocks grow or shrink.
"""

import itertools

import datasets
import pytest
import torch

from unmask import Blockwise, ProgressiveUnmasking, RowStream, Scores

COPIES = [5, 1, 2, 4, 1, 3, 2, 6, 2, 2, 6, 1, 3, 1, 4, 5]  # of each string of four bits: no independence
STRINGS = list(itertools.product([0, 1], repeat=4))
HIDDEN, SIZE = 2, 2
PLACE = torch.tensor([27, 9, 3, 1])


@pytest.fixture(scope="module")
def bits():
    tokens = [list(string) for string, copies in zip(STRINGS, COPIES, strict=True) for _ in range(copies)]
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[True] * 4] * len(tokens)})


def states(batch):
    """[B, L] code of what is seen where each position is predicted: clean blocks before, its own as it is."""
    found = torch.empty_like(batch.clean.tokens)
    for b in range(int(batch.block.max()) + 1):
        seen = torch.where(batch.block < b, batch.clean.tokens, batch.noisy(HIDDEN))
        code = (torch.where(batch.block > b, HIDDEN, seen) * PLACE).sum(1, keepdim=True)
        found = torch.where(batch.block == b, code, found)
    return found


def largest_deviation(dataset, config, score, steps=300, pool=48, first=0):
    """Largest z of the share of ones at a masked position from step `first` on, over states and masked positions."""
    process = config.start(RowStream(dataset), pool)
    ones, count = torch.zeros(81, 4), torch.zeros(81, 4)
    for step in range(steps):
        batch = process.draw()
        state = states(batch)
        for i in range(4 if step >= first else 0):
            count[:, i].index_add_(0, state[:, i], batch.masked[:, i].float())
            ones[:, i].index_add_(0, state[:, i], (batch.masked * batch.clean.tokens)[:, i].float())
        process.observe(Scores(score(state, batch.clean.tokens)))
    largest, seen = 0.0, 0
    for state in itertools.product([0, 1, HIDDEN], repeat=4):
        code = int((torch.tensor(state) * PLACE).sum())
        weight = torch.tensor(
            [
                c * all(v in (HIDDEN, b) for v, b in zip(state, string, strict=True))
                for c, string in zip(COPIES, STRINGS, strict=True)
            ]
        ).float()
        p = (weight[:, None] * torch.tensor(STRINGS)).sum(0) / weight.sum()
        for i in range(4):
            n = float(count[code, i])
            if n >= 50:
                largest = max(largest, float((ones[code, i] - n * p[i]).abs() / (n * p[i] * (1 - p[i])) ** 0.5))
                seen += 1
    assert seen >= 16
    return largest


@pytest.mark.parametrize(
    ("inner", "size"),
    [
        (ProgressiveUnmasking(stages=2, pool="batch"), SIZE),
        (ProgressiveUnmasking(stages=2, threshold=0.7, pool=4 * 48), SIZE),
        (ProgressiveUnmasking(stages=2, pool=2 * 48), 3),
    ],
    ids=str,
)
def test_masked_tokens_keep_the_posterior_of_the_data(bits, inner, size):
    table = torch.rand(81, 4, generator=torch.Generator().manual_seed(0)).double().log()
    assert largest_deviation(bits, Blockwise(inner, size), lambda state, tokens: table.gather(0, state)) < 4.5


@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (1, 2), (3, 2)], ids=str)
def test_masked_tokens_keep_it_where_the_size_of_the_blocks_changes(bits, sizes, threshold):
    """Measured on the chains that the change meets under way: what chose their tokens saw other ones."""
    inner = ProgressiveUnmasking(stages=3, threshold=threshold, pool="batch")
    table = torch.rand(81, 4, generator=torch.Generator().manual_seed(0)).double().log()
    change = Blockwise(inner, ((0, sizes[0]), (1, sizes[1])))
    found = largest_deviation(bits, change, lambda state, tokens: table.gather(0, state), 4, 16_000, first=1)
    assert found < 4.5


@pytest.mark.parametrize("pool", ["batch", 4 * 48])
def test_scores_that_look_at_the_hidden_tokens_bend_the_posterior(bits, pool):
    """The control: the same measurement sees a chain that reveals ones first."""
    config = Blockwise(ProgressiveUnmasking(stages=2, pool=pool), SIZE)
    assert largest_deviation(bits, config, lambda state, tokens: tokens.double() - 2, steps=200) > 8

"""Builders that the tests share, as fixtures that return plain functions."""

import re

import datasets
import pytest
import torch

from unmask import MaskedBatch, RowStream, Scores, TokenBatch
from unmask.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset_of():
    """Build a data set of rows with the given L_eff; token p of row r is 100 r + p, so rows can be told apart.

    Each row starts with `prompt` clues; with `gaps`, every third position after it is a clue too.
    """

    def build(lengths, prompt=1, gaps=False):
        tokens, maskable = [], []
        for row, length in enumerate(lengths):
            flags = [False] * prompt
            while sum(flags) < length:
                flags.append(not (gaps and len(flags) % 3 == 0))
            tokens.append([100 * row + position for position in range(len(flags))])
            maskable.append(flags)
        return datasets.Dataset.from_dict({"tokens": tokens, "maskable": maskable})

    return build


@pytest.fixture(scope="session")
def stream_of(dataset_of):
    """Build a RowStream over `dataset_of(lengths)`."""

    def build(lengths, seed=0, rank=0, world_size=1, **columns):
        return RowStream(dataset_of(lengths, **columns), seed=seed, rank=rank, world_size=world_size)

    return build


@pytest.fixture(scope="session")
def token_batch():
    """Build a TokenBatch from rows of tokens and flags of equal length; everything is real by default."""

    def build(tokens, maskable=None, attention=None, row=None, draw=None, weight=None):
        tokens = torch.as_tensor(tokens)
        everything = torch.ones(tokens.shape, dtype=torch.bool)
        return TokenBatch(
            tokens=tokens,
            maskable=everything if maskable is None else torch.as_tensor(maskable),
            attention=everything if attention is None else torch.as_tensor(attention),
            row=torch.arange(len(tokens)) if row is None else torch.as_tensor(row),
            draw=torch.zeros(len(tokens), dtype=torch.int64) if draw is None else torch.as_tensor(draw),
            weight=torch.ones(len(tokens)) if weight is None else torch.as_tensor(weight),
        )

    return build


@pytest.fixture(scope="session")
def masked_batch(token_batch):
    """Build a MaskedBatch from rows of tokens and of mask flags."""

    def build(tokens, masked, rate=None, density=None, **columns):
        clean = token_batch(tokens, **columns)
        return MaskedBatch(clean, torch.as_tensor(masked), rate, density, group=clean.row)

    return build


@pytest.fixture(scope="session")
def random_scores():
    """Build float64 scores of random logits over a small vocabulary, for every position [B, L]."""

    def build(shape, generator, sharpness=3.0):
        logits = sharpness * torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
        return Scores.from_logits(logits, needs=("log_confidence", "margin", "entropy"))

    return build


@pytest.fixture(scope="session")
def same():
    """Tell whether two batches are equal in every field, bit for bit."""

    def compare(a, b):
        for name in a.__dataclass_fields__:
            x, y = getattr(a, name), getattr(b, name)
            if isinstance(x, torch.Tensor):
                if not (x.dtype == y.dtype and torch.equal(x, y)):
                    return False
            elif hasattr(x, "__dataclass_fields__"):
                if not compare(x, y):
                    return False
            elif x is not y:
                return False
        return True

    return compare


@pytest.fixture(scope="session")
def joined():
    """Join token or masked batches along the rows, after padding all to one length."""

    def pad(batch, length):
        def widen(tensor):
            wide = tensor.dim() == 2 and tensor.shape[1] > 1
            return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1])) if wide else tensor

        return batch.map(widen)

    def join(parts):
        clean = [getattr(part, "clean", part) for part in parts]
        length = max(c.length for c in clean)
        parts = [pad(part, length) for part in parts]

        def cat(items):
            first = items[0]
            values = {}
            for name in first.__dataclass_fields__:
                column = [getattr(item, name) for item in items]
                if isinstance(column[0], torch.Tensor):
                    values[name] = torch.cat(column)
                else:
                    values[name] = cat(column) if hasattr(column[0], "__dataclass_fields__") else column[0]
            return type(first)(**values)

        return cat(parts)

    return join


@pytest.fixture
def command(capsys):
    """Run the command line: exit code, standard output and standard error, in plain words."""

    def run(*words):
        code = 0
        try:
            main(list(words))
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, *(" ".join(re.sub(r"[│╭╮╰╯─┃┏┓┡┩┳╇]", " ", text).split()) for text in (said.out, said.err))

    return run

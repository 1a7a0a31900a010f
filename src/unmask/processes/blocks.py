"""Rows cut into blocks: folding turns the blocks of a row into rows of their own, unfolding puts them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from unmask import noise
from unmask.batch import TokenBatch


@dataclass(frozen=True)
class Blocks:
    """Rows of `length` positions cut into blocks of `size`; the last one may be shorter.

    Folding turns [B, L] into [B · count, size], the blocks of a row next to one another. With `size` of at least
    `length` it changes nothing: a row is one block.
    """

    size: int
    length: int

    @classmethod
    def of(cls, length: int, size: int | None = None) -> Blocks:
        """Rows of `length` positions in blocks of at most `size`; None: a row is one block."""
        return cls(max(1, length if size is None else min(size, length)), length)

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return max(1, -(-self.length // self.size))

    def fold(self, rows: Tensor) -> Tensor:
        """[B, L] -> [B · count, size], padded with zeros."""
        return pad(rows, (0, self.count * self.size - self.length)).reshape(-1, self.size)

    def unfold(self, units: Tensor, each: int = 1) -> Tensor:
        """[B · count · each, size] -> [B · each, L]: undoes `fold` where every block became `each` rows."""
        by_block = units.reshape(-1, self.count, each, self.size).transpose(1, 2)
        return by_block.reshape(-1, self.count * self.size)[:, : self.length]

    def numbers(self, rows: Tensor) -> Tensor:
        """[B, L] int64 block of each position, for the shape and device of `rows`."""
        return (torch.arange(self.length, device=rows.device) // self.size).expand(len(rows), -1)

    def units(self, clean: TokenBatch) -> TokenBatch:
        """The blocks of rows as rows of their own, with noise of their own."""
        row = clean.row.repeat_interleave(self.count)
        number = torch.arange(self.count, device=row.device).repeat(len(clean))
        # The first block keeps the row's number: a row of one block has the noise of a row without blocks.
        row = torch.where(number == 0, row, noise.hashes(row, self.size, number))
        length, guide = clean.expected_length, clean.guide
        return TokenBatch(
            tokens=self.fold(clean.tokens),
            maskable=self.fold(clean.maskable),
            attention=self.fold(clean.attention),
            row=row,
            draw=clean.draw.repeat_interleave(self.count),
            weight=clean.weight.repeat_interleave(self.count),
            expected_length=None if length is None else length.repeat_interleave(self.count),
            guide=None if guide is None else self.fold(guide),
        )

"""Counter-based randomness: every random number is a hash of what it is for.

The masks of a row depend on (seed, row, draw, position), its rate on (seed, step, global slot). So a run
is the same for any number of ranks, micro-batches and resumes, ranks never repeat one another's noise, and
there is no generator state to save. The mixing function is the finaliser of SplitMix64 (Steele, Lea and
Flood, 2014), in wrapping 64-bit integer arithmetic, on whatever device the counters are on.
"""

from __future__ import annotations

from enum import IntEnum, unique

import torch
from torch import Tensor


@unique
class Purpose(IntEnum):
    """Keeps the numbers drawn for one purpose independent of those for another."""

    MASK = 0
    RATE = 1
    STRATUM = 2
    STAGE = 3
    REVEAL = 4
    ORDER = 5
    MIRROR = 6
    SAMPLE = 7
    EVALUATION = 8
    REMASK = 9
    TURN = 10


def _signed(value: int) -> int:
    """Two's complement of a 64-bit constant: torch has no unsigned 64-bit arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def hashes(*counters: int | Tensor) -> Tensor:
    """Hash integer counters, broadcast against one another, to 64 uniform bits each (int64)."""
    state: Tensor = torch.zeros((), dtype=torch.int64)
    for counter in counters:
        if not isinstance(counter, Tensor):
            counter = torch.tensor(_signed(int(counter)))
        if counter.dtype != torch.int64:
            raise TypeError(f"a noise counter must be an integer or an int64 tensor, not {counter.dtype}")
        # One round per counter; the golden-ratio step keeps a zero counter from being a fixed point.
        state = _mix(state * _FIRST + counter + _GOLDEN)
    return state


def _unit(bits: Tensor) -> Tensor:
    """Map 64 random bits to a float64 strictly inside (0, 1), on the grid of odd multiples of 2**-53."""
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def uniforms(
    seed: int, row: Tensor, draw: Tensor, length: int, *, purpose: int = Purpose.MASK, salt: int | Tensor = 0
) -> Tensor:
    """Uniform numbers for each position of each row.

    Args:
        seed: the run's seed.
        row: [B] int64, global row numbers.
        draw: [B] int64, how often each row had been drawn before.
        length: L, the number of positions. A longer call extends a shorter one.
        purpose: what the numbers are for; different purposes are independent.
        salt: one more counter, an integer or [B, 1] (PUMA: the stage).

    Returns:
        [B, L] float64 in (0, 1): a pure function of (seed, row, draw, position), so the same for any split
        of the work over ranks, micro-batches and resumes.
    """
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    position = torch.arange(length, device=row.device)
    return _unit(hashes(seed, int(purpose), salt, row[:, None], draw[:, None], position))


def slot_uniforms(seed: int, step: int, slot: Tensor, *, purpose: int = Purpose.RATE) -> Tensor:
    """Uniform numbers in (0, 1), float64, for the slots (any shape, int64) of the global batch of a step."""
    return _unit(hashes(seed, int(purpose), step, slot))


def permutation(seed: int, counter: int, size: int, *, purpose: int = Purpose.ORDER) -> Tensor:
    """Return a random order of range(size), [size]: a pure function of (seed, counter, size)."""
    return hashes(seed, int(purpose), counter, torch.arange(size)).argsort(stable=True)

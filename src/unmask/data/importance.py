"""Drawing rows unevenly: in proportion to an estimate of their loss, and weighted back.

Importance sampling over rows, mixed with uniform draws. It is ours: no paper's method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.config import ours, require


@dataclass(frozen=True)
class RowImportance:
    """Draw row i with probability q_i = (1 - uniform) · s_i / Σ s + uniform / N, and weigh it by 1 / (N q_i).

    s_i estimates the row's loss scale: a moving average of the losses seen for it, the mean of all rows'
    where it has not been seen yet. So every expectation over rows stays what it is under uniform draws.

    Attributes:
        uniform: share of draws that are uniform, in (0, 1]; it bounds every weight by 1 / uniform.
        memory: share of the old estimate kept when a row is seen again, in [0, 1).
    """

    uniform: float = 0.3
    memory: float = 0.7

    def __post_init__(self) -> None:
        require(0 < self.uniform <= 1, f"uniform is a share in (0, 1], got {self.uniform}")
        require(0 <= self.memory < 1, f"memory is a share in [0, 1), got {self.memory}")


class RowScales:
    """The running estimate behind `RowImportance`: identical on all ranks, part of the stream's state."""

    def __init__(self, config: RowImportance, size: int) -> None:
        self.config = config
        self.scale = torch.full((size,), torch.nan, dtype=torch.float64)
        self.draws = torch.zeros(size, dtype=torch.int64)

    @property
    def probability(self) -> Tensor:
        """[N] float64, q_i."""
        seen = ~self.scale.isnan()
        typical = self.scale[seen].mean() if seen.any() else torch.ones((), dtype=torch.float64)
        scale = torch.where(seen, self.scale, typical).clamp(min=1e-12)
        return (1 - self.config.uniform) * scale / scale.sum() + self.config.uniform / len(scale)

    def choose(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn uniform numbers [n] into row numbers, how often each had been drawn before, and weights, all [n]."""
        probability = self.probability
        cdf = probability.cumsum(0)
        row = torch.searchsorted(cdf, uniform * cdf[-1], right=True).clamp(max=len(cdf) - 1)
        order = row.argsort(stable=True)
        times = torch.bincount(row, minlength=len(self.draws))
        first = (times.cumsum(0) - times)[row[order]]
        earlier = torch.empty_like(row).index_copy(0, order, torch.arange(len(row)) - first)  # within this call
        draw = self.draws[row] + earlier
        self.draws = self.draws + times
        return row, draw, 1 / (len(cdf) * probability[row])

    def observe(self, row: Tensor, loss: Tensor) -> None:
        """Take in the losses [n] of rows [n]; losses of a row that occurs more than once are averaged."""
        size = len(self.scale)
        count = torch.bincount(row, minlength=size)
        seen = count > 0
        mean = torch.bincount(row, loss.abs().double(), minlength=size)[seen] / count[seen]
        old = self.scale[seen]
        keep = torch.where(old.isnan(), 0.0, self.config.memory)
        self.scale = self.scale.masked_scatter(seen, keep * old.nan_to_num() + (1 - keep) * mean)

    def state_dict(self) -> dict[str, Any]:
        """The estimates and how often each row was drawn."""
        return {"scale": self.scale, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scale, self.draws = state["scale"], state["draws"]


ours(RowImportance)

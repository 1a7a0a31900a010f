"""The values that travel between data, forward process, model and objective.

Shapes: B rows of a step on this rank, L positions, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad


def widest(device: torch.device) -> torch.dtype:
    """The most precise numbers of a device: float64, but on Apple's GPUs, which have no more than float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """What statistics of numbers of a type are taken in: fp32, but float64 of float64."""
    return torch.promote_types(dtype, torch.float32)


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows [n] or [n, L] of several tensors as one, padded on the right with zeros where some are wider."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([part if part.shape[1] == width else pad(part, (0, width - part.shape[1])) for part in parts])


@dataclass(frozen=True)
class Tensors:
    """Operations shared by the dataclasses of tensors whose first dimension is the row."""

    _host_only = ()  # names of the fields that `to` leaves on the CPU
    _padded_by_last = ()  # names of the fields whose last column is repeated where `concatenated` pads

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to every tensor field; None stays None."""
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, Tensors)):
                changes[field.name] = value.map(function) if isinstance(value, Tensors) else function(value)
        return replace(self, **changes)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return the rows that a slice, an index tensor or a boolean tensor [B] selects."""
        return self.map(lambda tensor: tensor[rows])

    @classmethod
    def concatenated(cls, parts: Sequence[Self]) -> Self:
        """The rows of several values, one after another, as those of one.

        Narrower columns are padded on the right with zeros (`_padded_by_last`: with their last), numbers become a
        vector, and a field that one part lacks the whole lacks.

        Args:
            parts: at least one.
        """

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if any(value is None for value in values):
                return None
            if isinstance(values[0], Tensors):
                return type(values[0]).concatenated(values)
            if name in cls._padded_by_last:
                width = max(value.shape[1] for value in values)
                values = [torch.cat([v, v[:, -1:].expand(-1, width - v.shape[1])], 1) for v in values]
            return torch.stack(values) if values[0].dim() == 0 else joined_rows(values)

        return cls(**{field.name: join(field.name) for field in fields(cls)})

    def to(self, device: torch.device | str | None) -> Self:
        """Move every tensor to `device`, but for what is the host's alone, at any depth; None leaves all where it is.

        The numbers that weights are made of are float64, which not every device has: they stay on the CPU.
        """
        if device is None:
            return self
        # Back on the host a copy must be whole before it is read.
        waits = torch.device(device).type == "cpu"
        pins = torch.device(device).type == "cuda"  # a copy out of pageable memory makes the host wait

        def moved(value: Any) -> Any:
            if isinstance(value, Tensors):
                return value.to(device)
            if not isinstance(value, Tensor):
                return value
            value = value.pin_memory() if pins and value.device.type == "cpu" else value
            return value.to(device, non_blocking=not waits)

        names = [field.name for field in fields(self) if field.name not in self._host_only]
        return replace(self, **{name: moved(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class TokenBatch(Tensors):
    """Clean rows, as a data stream yields them.

    Attributes:
        tokens: [B, L] int64 clean token ids, x0.
        maskable: [B, L] bool, positions that the process may mask: no prompt, no padding.
        attention: [B, L] bool, real tokens (False = padding).
        row: [B] int64 global row number; with `draw` it is the counter of the row's noise.
        draw: [B] int64, how often the row had been drawn before.
        weight: [B] float32 importance of the row: 1 unless rows are drawn unevenly.
        expected_length: [B] float64, the data set's mean L_eff where rows are drawn unevenly, else None. On the CPU.
        guide: [B, L] float64, the data set's column `guide`, or None where it has none: a number for each position
            that a mask rule (`GIFT`), a reveal policy (`stored`) or an objective (`SyRM`) reads. On the CPU.
        document: [B, L] int64, the data set's column `document`: positions of another document of the row are not
            seen, and positions count from its beginning. None: rows are documents. On the CPU.
    """

    _host_only = ("expected_length", "guide", "document")

    tokens: Tensor
    maskable: Tensor
    attention: Tensor
    row: Tensor
    draw: Tensor
    weight: Tensor
    expected_length: Tensor | None = None
    guide: Tensor | None = None
    document: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """L: the padded length."""
        return self.tokens.shape[1]

    @property
    def effective_length(self) -> Tensor:
        """L_eff: [B] number of maskable positions of each row."""
        return self.maskable.sum(1)

    def padded(self, length: int) -> TokenBatch:
        """Pad (or cut padding) on the right to `length` positions."""
        extra = length - self.length
        if extra < 0 and self.attention[:, length:].any():
            raise ValueError(f"rows of {self.length} positions hold real tokens beyond position {length}")

        def widen(tensor: Tensor) -> Tensor:
            return pad(tensor, (0, extra)) if tensor.dim() == 2 else tensor

        return self if extra == 0 else self.map(widen)

    def put(self, rows: Tensor, new: TokenBatch) -> None:
        """Write `new`, of the same length, in place over the rows at index `rows` [n]."""
        for field in fields(TokenBatch):
            value = getattr(self, field.name)
            if value is not None:
                value[rows] = getattr(new, field.name)


def begins_of(document: Tensor) -> Tensor:
    """[B, L] bool: where the documents of rows begin, as `TokenBatch.document` tells them apart."""
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document.diff(dim=1) != 0
    return begins


@dataclass(frozen=True)
class MaskedBatch(Tensors):
    """Partly masked rows, as a forward process yields them: facts only, no weighting.

    Attributes:
        clean: the rows.
        masked: [B, L] bool, masked positions, a subset of `clean.maskable`.
        rate: [B, 1] float64 mask rate ([B, L] where it differs by block), or None where the process has none. On the
            CPU, as the density is, wherever the rows are.
        density: same shape as `rate`: density of the drawn rate, see docs/estimators.md. None means
            intractable (PUMA and every mix with it): likelihoods and the ELBO refuse such a batch.
        block: [B, L] int64 block of each position for blockwise processes, from 0 and below L, never decreasing
            along a row; else None.
    """

    _host_only = ("rate", "density")
    _padded_by_last = ("block",)

    clean: TokenBatch
    masked: Tensor
    rate: Tensor | None
    density: Tensor | None
    block: Tensor | None = None

    def __len__(self) -> int:
        return len(self.masked)

    def noisy(self, mask_token_id: int) -> Tensor:
        """x_t: [B, L] the clean tokens with `mask_token_id` at the masked positions."""
        return self.clean.tokens.masked_fill(self.masked, mask_token_id)


@dataclass(frozen=True)
class Scores(Tensors):
    """What a model thinks of the masked positions; reveal policies rank by it. All [B, L], fp32 or better.

    Values at positions that are not masked have no meaning.

    Attributes:
        log_confidence: log-probability of the most probable token.
        margin: probability of the most probable token less that of the second.
        entropy: entropy of the predicted distribution, in nats.
        nll: negative log-likelihood of the clean token, in nats. Reveal policies must not read it (it
            peeks at hidden tokens); time distributions that learn during training do.
        guide: what the data set's column `guide` says of each position, for the policy `stored`; not the model's.
    """

    log_confidence: Tensor
    margin: Tensor | None = None
    entropy: Tensor | None = None
    nll: Tensor | None = None
    guide: Tensor | None = None

    @classmethod
    def from_logits(
        cls, logits: Tensor, mask_token_id: int | None = None, needs: tuple[str, ...] | None = ()
    ) -> Scores:
        """Compute scores from plain logits [..., V], for models that do not use the masked head.

        Args:
            logits: [..., V] in any dtype; statistics are taken in fp32 (float64 stays float64).
            mask_token_id: excluded from the distribution if given.
            needs: names of the statistics to compute, as a process gives them (None: none); the log-confidence
                always is.
        """
        logits = logits.to(at_least_fp32(logits.dtype))
        if mask_token_id is not None:
            excluded = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
            logits = logits.masked_fill(excluded, -torch.inf)
        others, _, _ = relative_to_best(logits.clone())
        return cls(**statistics(others, others.sum(-1), needs or ()))


def relative_to_best(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits [..., V] in place into exp(logit - best), with 0 in place of the best token's 1.

    Returns that, and value and index of the best logit, [..., 1] each. The 1 is left out so that the sum of the
    others keeps its precision where the best token is nearly certain.
    """
    best, index = logits.max(-1, keepdim=True)
    return logits.sub_(best).exp_().scatter_(-1, index, 0), best, index


def statistics(others: Tensor, rest: Tensor, needs: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the statistics of `Scores` named in `needs`, and the log-confidence.

    Args:
        others: [..., V] of `relative_to_best`; excluded tokens, with logits of -inf, are 0.
        rest: [...] their sum.
        needs: names of the statistics.
    """
    # log(1 + the others) rather than a difference of large numbers: nearly certain positions keep their order.
    log_normaliser = rest.log1p()
    found = {"log_confidence": -log_normaliser}
    if "margin" in needs:
        found["margin"] = (1 - others.amax(-1)) / (1 + rest)
    if "entropy" in needs:
        found["entropy"] = log_normaliser + torch.special.entr(others).sum(-1) / (1 + rest)
    return found

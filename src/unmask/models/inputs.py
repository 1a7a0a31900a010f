"""What one forward reads, worked out where the rows lie.

How many positions are masked, where padding lies and what of the blocks must be run depends on the data, and a GPU
that is asked for it makes the host wait. On the host the answers are at hand. So rows stay there until all that is
left is to move a few tensors (`Prepared.to`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.batch import MaskedBatch, Tensors
from unmask.models.attention import PADDING, BlockLayout, DocumentLayout
from unmask.models.families import first_position


@dataclass(frozen=True)
class Inputs(Tensors):
    """The tokens of one forward, and how its hidden states become those that predict each position.

    Attributes:
        tokens: [B, N] int64, with mask tokens.
        real: [B, N] bool, no padding; None where all are real.
        predictor: [L] int64, the position whose state predicts position i; None where each predicts itself.
        order: [B, L] int64, the order in which padding comes last, where it did not; else None.
        layout: where blocks are run in two copies; else None.
        documents: where rows hold several; else None.
    """

    tokens: Tensor
    real: Tensor | None
    predictor: Tensor | None
    order: Tensor | None
    layout: BlockLayout | None
    documents: DocumentLayout | None = None

    @classmethod
    def of(
        cls,
        noisy: Tensor,
        attention: Tensor,
        shifted: bool,
        block: Tensor | None = None,
        clean: Tensor | None = None,
        document: Tensor | None = None,
    ) -> Inputs:
        """As for `MaskedDiffusionLM.hidden`."""
        documents = None if document is None else DocumentLayout.of(document, attention)
        # The shift, once: which position's state predicts position i.
        predictor = (torch.arange(noisy.shape[1], device=noisy.device) - int(shifted)).clamp(min=0)
        if documents is not None:
            if block is not None and bool(block.any()):
                raise ValueError(
                    "documents that are kept apart within a row cannot be cut into blocks: use rows of "
                    "one document each (packing 'document'), or a masking without blocks"
                )
            return cls(noisy, attention, predictor if shifted else None, None, None, documents)
        if block is None or not block.any():
            whole, order = _padding(attention)
            if order is not None:
                noisy, attention = noisy.gather(1, order), attention.gather(1, order)
            return cls(noisy, None if whole else attention, predictor if shifted else None, order, None)
        if not bool((attention[:, 1:] <= attention[:, :-1]).all()):
            raise ValueError("a row in blocks has padding before a token: pad on the right")
        masked = torch.zeros_like(attention) if clean is None else noisy != clean
        if clean is None or not masked.any():
            clean, layout = noisy, BlockLayout.single(block, attention, predictor)
        else:
            layout = BlockLayout.double(block, attention, predictor, masked)
        return cls(layout.tokens(noisy, clean), layout.real, None, None, layout)

    def arguments(self, backbone: nn.Module, unfit: Mapping[str, str]) -> dict[str, Tensor | None]:
        """What the backbone is called with.

        Args:
            backbone: that is called.
            unfit: why it cannot be run so, by the `use` of a layout.

        Raises:
            ValueError: for a layout that the backbone cannot be told, or is unfit for.
        """
        layout = self.layout if self.documents is None else self.documents
        use = layout.use if layout is not None else PADDING if self.real is not None else "whole rows"
        if use in unfit:
            raise ValueError(f"{type(backbone).__name__} cannot be used with {use}: {unfit[use]}")
        if layout is None:
            return {"input_ids": self.tokens, "attention_mask": self.real}
        return {
            "input_ids": self.tokens,
            "attention_mask": layout.attention_mask(backbone),
            "position_ids": layout.position.expand(len(self.tokens), -1) + first_position(backbone),
        }

    def read(self, hidden: Tensor) -> Tensor:
        """[B, L, d] states that predict each position, of what the backbone returned."""
        if self.layout is not None:
            return self.layout.read(hidden)
        hidden = hidden if self.predictor is None else hidden[:, self.predictor]
        if self.order is None:
            return hidden
        return torch.empty_like(hidden).scatter(1, self.order[..., None].expand_as(hidden), hidden)


@dataclass(frozen=True)
class Prepared(Tensors):
    """A masked batch as the model reads it (`MaskedDiffusionLM.prepare`).

    Attributes:
        batch: the rows, which stay where they are.
        inputs: what is run.
        place: [M] int64, the masked positions in the rows laid end to end.
        target: [M] int64, the tokens there.
        weight: [M] their weights.
    """

    _host_only = ("batch",)

    batch: MaskedBatch
    inputs: Inputs
    place: Tensor
    target: Tensor
    weight: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """[B, L] values [M] at the masked positions, 0 elsewhere."""
        shape = self.batch.masked.shape
        return values.new_zeros(shape.numel()).index_copy(0, self.place, values).view(shape)


def _padding(attention: Tensor) -> tuple[bool, Tensor | None]:
    """Whether all tokens are real; and where padding comes before tokens, the order that puts it behind them.

    Positions count real tokens then, whatever kind of positions a family has.
    """
    before = (attention[:, 1:] > attention[:, :-1]).any()
    whole, before = torch.stack([attention.all(), before]).tolist()
    return whole, (~attention).long().argsort(dim=1, stable=True) if before else None

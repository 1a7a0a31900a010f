"""What one forward of a denoiser gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask.batch import Scores, Tensors


@dataclass(frozen=True)
class MaskedOutput(Tensors):
    """What a forward over a masked batch returns.

    Attributes:
        loss: scalar Σ weight · nll, differentiable.
        nll: [B, L] nats of each masked token, fp32; 0 where nothing is masked; no gradient.
        scores: the statistics asked for, or None.
        gradient: [B, L] length of the loss's gradient with respect to each masked position's hidden state, if
            asked for.
        balance: scalar, what the loss holds besides: a mixture of experts' term for even routing, times Σ weight.
            None where the model's config does not ask for it (`output_router_logits`).
        factor: [B, L] what the objective multiplied the weights by, if it reweights.
    """

    loss: Tensor
    nll: Tensor
    scores: Scores | None
    gradient: Tensor | None = None
    balance: Tensor | None = None
    factor: Tensor | None = None

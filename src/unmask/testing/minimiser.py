"""Where does training come to rest? The exact minimiser of an objective on a tabular world.

In every visible context a free model can learn any distribution, so the minimiser of the expected loss is known: the
distribution of the hidden token among all that is drawn there, each draw counted by its weight. Rates, masks and
weights come from the production code; sums run over every string, every mask and a quadrature of the rates. Weights
that depend on the model's own scores are detached, and the model at rest is the fixed point of the same formula.

For processes and objectives that keep to what is visible, it is the data's own conditional. For others it is not, and
`Rest.moved` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.batch import Scores, TokenBatch
from unmask.objectives import Objective
from unmask.processes import IndependentMasking
from unmask.testing.enumeration import draws
from unmask.testing.tabular import TabularWorld


@dataclass(frozen=True)
class Rest:
    """What a model at rest predicts, for the N pairs of a visible context and a hidden position that are trained.

    Attributes:
        context: [N, L] tokens, the mask token where hidden.
        position: [N] the hidden position.
        predicted: [N, V] probabilities at rest.
        truth: [N, V] the data's conditional.
    """

    context: Tensor
    position: Tensor
    predicted: Tensor
    truth: Tensor

    @property
    def moved(self) -> float:
        """Largest distance in total variation between `predicted` and `truth`."""
        return float((self.predicted - self.truth).abs().sum(1).max()) / 2


def stationary(
    masking: IndependentMasking,
    objective: Objective,
    world: TabularWorld,
    rows: Callable[[Tensor], TokenBatch] | None = None,
    nodes: int = 24,
    rounds: int = 500,
) -> Rest:
    """Find where training with `masking` and `objective` comes to rest, for large batches.

    Args:
        masking: how rows are masked; couplings and pairs do not matter.
        objective: gives weights, and factors on them. One that adds the entropy has no such formula.
        world: its strings are the rows, with their probabilities.
        rows: makes rows of strings, where not every position is maskable.
        nodes: quadrature nodes on each piece.
        rounds: iterations for weights that depend on the model.

    Raises:
        ValueError: where the iteration does not converge, or the loss holds more than weighted cross-entropies.
    """
    strings, probability = world.strings()
    occur = probability > 0  # contexts of the others have no conditionals
    strings, probability = strings[occur], probability[occur]
    clean, truth = (rows or world.rows)(strings), TabularWorld(world.joint)
    batch, row, share = draws(masking, clean, nodes)
    weight = objective.weights(batch).double() * (probability[row] * share)[:, None]
    masked, tokens = batch.masked, batch.clean.tokens
    noisy = tokens.masked_fill(masked, world.mask_token_id)
    base = world.mask_token_id + 1  # a context as one number is sorted faster than as a row
    digit = base ** torch.arange(world.length)
    number, which = (noisy * digit).sum(1).unique(return_inverse=True)
    context = number[:, None] // digit % base
    hidden = context == world.mask_token_id
    exact = truth.log_probabilities(context.masked_fill(hidden, 0), hidden).exp()

    def at_rest(factor: Tensor | float) -> Tensor:
        """[contexts, L, V] what is learnt where tokens weigh `weight * factor`."""
        one_hot = torch.nn.functional.one_hot(tokens, world.vocab_size)
        counted = ((weight * factor)[..., None] * one_hot).flatten(1)
        total = torch.zeros(len(context), counted.shape[1], dtype=torch.float64).index_add(0, which, counted)
        total = total.view(len(context), world.length, world.vocab_size)
        return total / total.sum(-1, keepdim=True).clamp(min=1e-300)

    predicted = at_rest(1.0)
    if objective.reads is not None:
        predicted = exact
        for _ in range(rounds):
            log_p = predicted.clamp(min=1e-300).log()[which]
            nll = -log_p.gather(-1, tokens[..., None])[..., 0] * masked
            scores = replace(Scores.from_logits(log_p, needs=objective.reads), nll=nll)
            if objective.sharpness(batch, scores) is not None:
                raise ValueError(f"{objective} adds the entropy of predictions, and where that rests is no mean")
            before, predicted = predicted, at_rest(objective.reweight(batch, scores))
            if float((predicted - before).abs().max()) < 1e-12:
                break
        else:
            raise ValueError(f"{objective}: no rest after {rounds} rounds")
    trained = torch.zeros(len(context), world.length, dtype=torch.float64).index_add(0, which, weight) > 1e-12
    at, position = (trained & hidden).nonzero().T
    return Rest(context[at], position, predicted[at, position], exact[at, position])

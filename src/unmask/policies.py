"""Reveal policies: in which order are masked positions revealed?

The same plain functions serve PUMA's chain and the sampler at inference. A policy takes the model's
`Scores` and uniform noise [B, L] and returns a priority [B, L]; positions with higher priority are revealed
first, ties go to the lower position. A policy that reads scores says which with `@needs(...)`; one without
the decorator gets all of them. It must never depend on the hidden tokens (`Scores.nll`): PUMA's soundness
rests on that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unmask.batch import Scores
from unmask.config import check_name, ours
from unmask.masks import smallest

Policy = Callable[[Scores, Tensor], Tensor]
STATISTICS = ("log_confidence", "margin", "entropy")


def needs(*statistics: str) -> Callable[[Policy], Policy]:
    """Declare which statistics of `Scores` a policy reads, so that only those are computed."""
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"unknown statistics {sorted(unknown)}; Scores has {', '.join(STATISTICS)}")

    def mark(policy: Policy) -> Policy:
        policy.needs = statistics  # type: ignore[attr-defined]
        return policy

    return mark


@needs("log_confidence")
def confidence(scores: Scores, noise: Tensor) -> Tensor:
    """Most probable top token first."""
    return scores.log_confidence


@needs("margin")
def margin(scores: Scores, noise: Tensor) -> Tensor:
    """Largest lead of the top token over the second first."""
    assert scores.margin is not None
    return scores.margin


@needs("entropy")
def entropy(scores: Scores, noise: Tensor) -> Tensor:
    """Least uncertain first: smallest entropy."""
    assert scores.entropy is not None
    return -scores.entropy


@needs()
def random(scores: Scores, noise: Tensor) -> Tensor:
    """Uniformly random order."""
    return noise


@needs()
def left_to_right(scores: Scores, noise: Tensor) -> Tensor:
    """Lowest position first."""
    return -torch.arange(noise.shape[1], device=noise.device, dtype=torch.float64).expand_as(noise)


@needs()
def right_to_left(scores: Scores, noise: Tensor) -> Tensor:
    """Highest position first (least-significant digit first, for numbers written the usual way)."""
    return -left_to_right(scores, noise)


@needs()
def stored(scores: Scores, noise: Tensor) -> Tensor:
    """The order that the data set's column `guide` holds, lowest number first; for chains of whole rows alone.

    Whoever made the order (a teacher, by `unmask.add_order`) must have looked at what was visible at each step, as a
    policy does: an order that looks at hidden tokens tells of them. For the same reason a chain must keep to the
    order from its start on: it enters by it, and goes with neither fast-forward nor blocks.
    """
    if scores.guide is None:
        raise ValueError(
            "the policy 'stored' reads an order from the data set's column `guide`, and there is none: make it with "
            "unmask.add_order; decoding has no rows to read it from"
        )
    return -scores.guide


POLICIES: dict[str, Policy] = {
    policy.__name__: policy for policy in (confidence, margin, entropy, random, left_to_right, right_to_left)
}
NAMED = POLICIES | {"stored": stored}
"""All that has a name: policies that need nothing but scores, and the one that needs a data set."""


def resolve(policy: str | Policy, known: Mapping[str, Policy] = NAMED) -> Policy:
    """Look a policy up by name; a callable is taken as it is.

    Args:
        policy: a name or a function.
        known: those that can be had here: decoding has no rows for "stored".

    Raises:
        ValueError: for another name.
    """
    if callable(policy):
        return policy
    if policy in NAMED and policy not in known:
        raise ValueError(
            f"the policy '{policy}' reads a data set's rows, and decoding has none. Known: {', '.join(known)}"
        )
    check_name("policy", policy, known)
    return known[policy]


def needs_of(policy: Policy) -> tuple[str, ...]:
    """Names of the statistics that a policy reads; all of them where it does not say."""
    return getattr(policy, "needs", STATISTICS)


def top(priority: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """Return the `count` [B] masked positions of highest priority, as [B, L] bool. Ties: lower position.

    Raises:
        ValueError: where the priority of a masked position is NaN.
    """
    if priority.shape != masked.shape:
        raise ValueError(f"a policy must return shape {tuple(masked.shape)}, got {tuple(priority.shape)}")
    if (priority.isnan() & masked).any():
        raise ValueError("the reveal policy gave NaN for a masked position: the model's scores are not finite")
    return smallest(-priority.double(), masked, count[:, None])


ours(*NAMED.values())

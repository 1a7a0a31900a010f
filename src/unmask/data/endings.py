"""What follows a text that is shorter than its row: named policies.

Padding is never attended to or masked here, and the end-of-text token is trained or not because someone said so.

- ``"trained"``: one end-of-text token follows the text, and it is masked and predicted like any other token. Behind
  it the row is padded. In packed rows the token lies between documents, so the model learns where documents end. In
  rows of one text it always stands last: the model learns that a text fills its row, and when it generates, the
  number of positions it is given decides the length.
- ``"untrained"``: the same tokens, but the end-of-text token is never masked. It is always given, so the model never
  learns to write it; generate before an end-of-text token that you place.
- ``"eos_as_padding"``: end-of-text tokens fill the row to its full length. All of them are attended to, masked and
  predicted. The model learns how long texts are: give it more positions than it needs, and it ends the text and fills
  the rest, which `TextTask` cuts off. LLaDA's fine-tuning does this (arXiv 2502.09992). It costs forwards over
  filling; and where texts are short, most of the tokens in the loss are filling, which is easy to predict.
- ``Rainbow(tokens)``: as eos_as_padding, but one end-of-text token is followed by a cycle of several padding tokens
  (rainbow padding). With one token for both, a confident sampler fills the far end with end-of-text before it writes
  anything, and replies come out short; with a cycle, no padding token is likely by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from unmask.config import check_name, ours, require, to_json

Ending = Literal["trained", "untrained", "eos_as_padding"]


@dataclass(frozen=True)
class Rainbow:
    """A cycle of padding tokens behind the end-of-text token, masked and predicted like any other.

    Attributes:
        tokens: ids of at least two tokens of the vocabulary that nothing else uses.
    """

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        distinct = len(set(self.tokens)) == len(self.tokens) > 1
        require(distinct, f"Rainbow needs at least two different tokens, got {self.tokens}; for one: eos_as_padding")


def check_ending(ending: Ending | Rainbow) -> Any:
    """What stands for an ending in the key of a cache, as a JSON value; ValueError for what is none."""
    if not isinstance(ending, Rainbow):
        check_name("ending", ending, get_args(Ending))
    return to_json(ending)


def with_ending(
    tokens: np.ndarray,
    maskable: np.ndarray,
    ending: Ending | Rainbow,
    eos_token_id: int,
    length: int,
    ended: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """End a row as the policy says.

    Args:
        tokens: [n] the row's tokens so far.
        maskable: [n] bool.
        ending: the policy.
        eos_token_id: the end-of-text token.
        length: L, the most tokens that a row may have.
        ended: the text brings its own end-of-text token, as many chat templates do.

    Returns:
        Tokens and maskable of the row, [m] each, n ≤ m ≤ L; None where it would be longer than L.
    """
    wanted = len(tokens) + (not ended)
    if wanted > length:
        return None
    fills = ending == "eos_as_padding" or isinstance(ending, Rainbow)
    extra = (length if fills else wanted) - len(tokens)
    added = np.full(extra, eos_token_id, tokens.dtype)
    if isinstance(ending, Rainbow):
        padding = added[(not ended) :]  # behind the end of the text
        padding[:] = np.resize(ending.tokens, len(padding))
    return (
        np.concatenate([tokens, added]),
        np.concatenate([maskable, np.full(extra, ending != "untrained")]),
    )


ours(Rainbow)

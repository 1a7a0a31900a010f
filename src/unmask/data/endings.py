"""What follows a text that is shorter than its row: three named policies.

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
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Ending = Literal["trained", "untrained", "eos_as_padding"]


def with_ending(
    tokens: np.ndarray, maskable: np.ndarray, ending: Ending, eos_token_id: int, length: int, ended: bool = False
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
    extra = (length if ending == "eos_as_padding" else wanted) - len(tokens)
    return (
        np.concatenate([tokens, np.full(extra, eos_token_id, tokens.dtype)]),
        np.concatenate([maskable, np.full(extra, ending != "untrained")]),
    )

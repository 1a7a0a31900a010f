"""What stands before a text: a policy that the tokenizer carries.

Many pretrained models have never read a text without a token of their own before it: BOS, or a class token. Without
it their predictions can be off by orders. So a tokenizer keeps the part of its own template that stands before a
text, and whatever makes rows of it puts that first: rows of prose, of prompts and of chats, rows that are evaluated,
and texts that are generated. What is put there is given, never masked or learnt. The template is saved with the
tokenizer, so a run that is opened again begins its texts as it was trained.

- ``"tokenizer"``: as the tokenizer itself does, if it does.
- ``"none"``: nothing.
- ``"bos"``: its BOS token, also where its own template has none; a shifted model needs some token before the first
  one that it predicts.

What follows a text is said by `unmask.data.endings`, not by the template.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Tokenizer

from unmask.config import check_name

Beginning = Literal["tokenizer", "none", "bos"]


def with_beginning(tokenizer: Tokenizer, beginning: Beginning, bos_token: Any) -> Tokenizer:
    """A tokenizer whose template is that of a policy; `bos_token` as it is spelt, or None.

    Raises:
        ValueError: for an unknown policy, or "bos" without a BOS token.
    """
    check_name("beginning", beginning, get_args(Beginning))
    if beginning == "tokenizer":
        return tokenizer
    first, special = [], {}
    if beginning == "bos":
        if not isinstance(bos_token, str):
            raise ValueError(
                "beginning='bos' needs a tokenizer with a BOS token: set tokenizer.bos_token to one of its tokens"
            )
        first = [{"SpecialToken": {"id": bos_token, "type_id": 0}}]
        special = {bos_token: {"id": bos_token, "ids": [tokenizer.token_to_id(bos_token)], "tokens": [bos_token]}}
    text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {"single": [*first, text], "pair": [*first, text, other], "special_tokens": special}
    form = json.loads(tokenizer.to_str()) | {"post_processor": {"type": "TemplateProcessing", **template}}
    return Tokenizer.from_str(json.dumps(form))


def prefix_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that a tokenizer's own template puts before any text."""
    if tokenizer.num_special_tokens_to_add(False) == 0:
        return ()
    for text in ("x", *tokenizer.get_vocab()):  # the first that it can write
        with suppress(Exception):  # the library raises nothing more special
            made = tokenizer.encode(text)
            if 0 in made.special_tokens_mask:
                return tuple(made.ids[: made.special_tokens_mask.index(0)])
    return ()


def with_prefix(prefix: tuple[int, ...], tokens: np.ndarray, maskable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin a row with the prefix, given; a row that has it already (chat templates write their own) stays as it is.

    Args:
        prefix: of the tokenizer.
        tokens: [n] the row's tokens.
        maskable: [n] bool.

    Returns:
        Tokens and maskable of the row, [m] each, n ≤ m ≤ n + len(prefix).
    """
    if not prefix or tuple(tokens[: len(prefix)].tolist()) == prefix:
        return tokens, maskable
    before = np.array(prefix, dtype=tokens.dtype)
    return np.concatenate([before, tokens]), np.concatenate([np.zeros(len(before), dtype=bool), maskable])

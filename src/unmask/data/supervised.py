"""Supervised fine-tuning: rows whose prompt is given and whose reply is learnt.

`prompt_rows` writes prompt and response from the columns of a data set, `chat_rows` renders conversations with the
tokenizer's chat template. In both only replies are maskable, and what the model is shown before a reply is, token for
token, what it will be shown when it has to write one.

Attention is bidirectional, so in a row with several replies each sees the turns after it. `replies="separate"` makes
a row of each reply, with nothing behind it, as it is when the model is used.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from string import Formatter
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from unmask.config import check_name, positive_int, require
from unmask.data.beginnings import Beginning, with_prefix
from unmask.data.cache import Rows, as_dataset, data_key
from unmask.data.columns import PathLike
from unmask.data.documents import batches
from unmask.data.endings import Ending, Rainbow, check_ending, with_ending
from unmask.data.tokenizers import TextTokenizer

TooLong = Literal["drop", "cut", "refuse"]
Replies = Literal["together", "separate"]
DAY = date(2024, 7, 26)
"""The day of all conversations; Llama's template takes it where it knows none."""


def prompt_rows(
    dataset: Dataset | IterableDataset,
    tokenizer: TextTokenizer,
    *,
    length: int,
    prompt: str = "{prompt}\n",
    response: str = "{response}",
    ending: Ending | Rainbow = "trained",
    too_long: TooLong = "drop",
    cache: PathLike | None = None,
    version: str | None = None,
) -> Dataset:
    """Make a row of each prompt and its response. Both are tokenized by themselves, as when only the prompt is known.

    Args:
        dataset: any Hugging Face data set, also one that is streamed.
        tokenizer: what makes the tokens. It reads no special tokens from texts, and its prefix begins every row.
        length: L, the most tokens of a row, its end included.
        prompt: a template that names columns of text, as in "Question: {question}\\nAnswer: "; double other braces.
            Rows in which all of them are empty stay, and a warning counts them.
        response: a template for what is learnt. A document in which a column that it names is empty is left out.
        ending: what follows the response; see `unmask.data.endings`.
        too_long: what to do with longer rows. "drop" leaves them out, "cut" keeps the first L tokens: a response
            loses its end, and a row whose prompt fills it is left out; both warn with a count. "refuse" is an error.
        cache: a folder to keep the rows in, as for `unmask.data.tokenize`.
        version: what the cache knows the data by, as there.

    Returns:
        Rows with the columns ``tokens`` (integers) and ``maskable`` (bool, True for the response and what of its
        ending is trained).

    Raises:
        ValueError: for an unknown column or policy, a response without a column, rows that are too long and refused,
            or no row at all.
        TypeError: for a tokenizer of transformers (see `TextTokenizer.from_hugging_face`), or a column that is not
            text.
    """
    TextTokenizer.check(tokenizer)
    _check(length, ending, too_long)
    asked, answered = template_columns(prompt), template_columns(response)
    columns = list(dict.fromkeys(asked + answered))
    require(
        len(answered) > 0,
        f"response must name a column in braces, as in '{{answer}}'; got {response!r}",
    )

    def examples() -> Iterator[_Example]:
        for places, values in batches(dataset, columns):
            texts: list[tuple[str, str, bool]] = []
            for place, document in zip(places, zip(*values, strict=True), strict=True):
                named = dict(zip(columns, document, strict=True))
                for name, value in named.items():
                    if not isinstance(value, str | None):
                        raise TypeError(f"{place}: column {name!r} is {type(value).__name__}, not text")
                named = {name: value or "" for name, value in named.items()}
                learnt = all(named[name].strip() for name in answered)
                asks = not asked or any(named[name].strip() for name in asked)
                texts.append((prompt.format_map(named), response.format_map(named) if learnt else "", asks))
            encoded = tokenizer.encode_all([text for *pair, _ in texts for text in pair])
            for place, (_, text, asks), given, reply in zip(places, texts, encoded[::2], encoded[1::2], strict=True):
                maskable = np.arange(len(given) + len(reply)) >= len(given)
                lacks = "reply" if not text else "characters" if len(reply) == 0 else None if asks else "prompt"
                yield _Example(place, np.concatenate([given, reply]), maskable, ended=False, lacks=lacks)

    rows = _rows(examples(), tokenizer, length, ending, too_long)
    settings = {
        "prompt": prompt,
        "response": response,
        "length": length,
        "ending": check_ending(ending),
        "too_long": too_long,
    }
    return as_dataset(rows, tokenizer, cache, settings, lambda: data_key(dataset, columns, version))


def chat_rows(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    messages: str = "messages",
    tools: str = "tools",
    beginning: Beginning = "tokenizer",
    replies: Replies = "together",
    ending: Ending | Rainbow = "trained",
    too_long: TooLong = "drop",
    cache: PathLike | None = None,
    version: str | None = None,
) -> Dataset:
    """Make rows of conversations, as the tokenizer's chat template renders them.

    A reply is what the template renders of an assistant's message, the mark of its end included. The prompt is the
    rendering up to and with the words that ask for a reply (`add_generation_prompt`). What comes after the last reply
    is left out. Where a template writes today's date, `DAY` stands. Special tokens that a message spells out are read
    as such: a template cannot tell them apart.

    Args:
        dataset: any Hugging Face data set, also one that is streamed.
        tokenizer: a fast tokenizer with a chat template, an end-of-text token and a mask token, as
            `unmask.from_pretrained` returns it.
        length: L, the most tokens of a row, its end included.
        messages: the column of conversations: lists of {"role": ..., "content": ...}. A key without a value is
            dropped, in arguments of tool calls too: a table gives every row the keys of all others.
        tools: the column of the tools that a conversation may call, for the template: a list of JSON schemas, or its
            JSON text, which keeps values that are null. Conversations have none where there is no such column.
        beginning: what stands before a conversation; see `unmask.data.beginnings`. A prefix that the template itself
            writes is not repeated. Give the same to `TextTokenizer.from_hugging_face` for the run's tokenizer.
        replies: "together" makes one row of a conversation, in which every reply is maskable. "separate" makes a row
            of each reply, with the turns before it as the prompt.
        ending: what follows the last reply. An end-of-text token is added unless the template itself ends replies
            with one; if "untrained", none of these is maskable. See `unmask.data.endings`.
        too_long: as for `prompt_rows`.
        cache: a folder to keep the rows in, as for `unmask.data.tokenize`.
        version: what the cache knows the data by, as there.

    Returns:
        Rows with the columns ``tokens`` (integers) and ``maskable`` (bool).

    Raises:
        TypeError: for a `TextTokenizer`, which has no chat template.
        ValueError: for a tokenizer without a chat template, mask or end-of-text token; a conversation that the
            template refuses, or renders otherwise when it goes on (as templates do that drop earlier thoughts); an
            unknown column or policy; rows that are too long and refused; or no row at all.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"expected a tokenizer of transformers with its chat template, got {type(tokenizer).__name__}: take the "
            "one that unmask.from_pretrained returns, or use prompt_rows"
        )
    _check(length, ending, too_long)
    check_name("replies", replies, get_args(Replies))
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str):
        raise ValueError("the tokenizer has no single chat template: set tokenizer.chat_template, or use prompt_rows")
    plain = TextTokenizer.from_hugging_face(tokenizer, beginning)
    eos = plain.eos_token_id
    known = getattr(dataset, "column_names", ())
    if known is None:  # a stream that knows its columns only once it runs
        known = next(iter(dataset.take(1)), {})
    columns = [messages, tools] if tools in known else [messages]

    def examples() -> Iterator[_Example]:
        for places, (conversations, *more) in batches(dataset, columns):
            every = more[0] if more else [None] * len(places)
            for place, conversation, offered in zip(places, conversations, every, strict=True):
                turns, schemas = _turns(conversation, place), _tools(offered, place)
                answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
                groups = [[i] for i in answers] if replies == "separate" and answers else [answers]
                for group in groups:
                    segments = _segments(tokenizer, turns, group, place, schemas)
                    tokens = np.concatenate([np.empty(0, dtype=np.int32), *segments])
                    is_reply = np.repeat(np.arange(len(segments)) % 2 == 1, [len(part) for part in segments])
                    maskable = is_reply & (tokens != eos) if ending == "untrained" else is_reply
                    yield _Example(place, tokens, maskable, ended=len(segments) > 0 and eos in segments[-1])

    rows = _rows(examples(), plain, length, ending, too_long)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}  # templates write them
    settings = {"columns": columns, "template": on_one_day(template), "special": special, "replies": replies}
    settings |= {"length": length, "ending": check_ending(ending), "too_long": too_long}
    return as_dataset(rows, plain, cache, settings, lambda: data_key(dataset, columns, version))


class _Example(NamedTuple):
    """A row before its end: tokens [n] and maskable [n]; `ended` where it brings its own end-of-text token."""

    place: str
    tokens: np.ndarray
    maskable: np.ndarray
    ended: bool
    lacks: Literal["reply", "characters", "prompt"] | None = None


_LACKS = {
    "reply": "left out {} of {} rows that have no reply, first {}",
    "characters": "left out {} of {} rows of whose reply the tokenizer has no character, first {}: take another "
    "(--data.vocabulary)",
    "prompt": "kept {} of {} rows whose prompt is empty, first {}: leave them out where that is not meant",
}
_LONG = {
    "drop": "left out {} of {} rows that are longer than {length} tokens (--data.length), first {}",
    "cut": "cut (or left out where the prompt fills them) {} of {} rows that are longer than {length} tokens "
    "(--data.length), first {}",
}


def _rows(
    examples: Iterator[_Example], tokenizer: TextTokenizer, length: int, ending: Ending | Rainbow, too_long: TooLong
) -> Iterator[Rows]:
    """Begin and end the rows, treat those that are too long, and say at the end what was left out."""
    total, kept, made = 0, 0, []
    told: dict[str, list[str]] = {}  # places, by what is said of them
    for place, tokens, maskable, ended, lacks in examples:
        total += 1
        if not maskable.any():
            told.setdefault(_LACKS[lacks or "reply"], []).append(place)
            continue
        tokens, maskable = with_prefix(tokenizer.prefix, tokens, maskable)
        row = with_ending(tokens, maskable, ending, tokenizer.eos_token_id, length, ended)
        if row is None:
            require(
                too_long != "refuse", f"{place} has {len(tokens)} tokens and does not fit into {length} with its end"
            )
            told.setdefault(_LONG[too_long], []).append(place)
            if too_long == "drop" or not maskable[:length].any():
                continue
            row = tokens[:length], maskable[:length]
        if lacks is not None:
            told.setdefault(_LACKS[lacks], []).append(place)
        made.append(row)
        kept += 1
        if len(made) == 256:
            yield Rows.of(made)
            made = []
    yield Rows.of(made)
    messages = [
        what.format(f"{len(places):,}", f"{total:,}", places[0], length=length) for what, places in told.items()
    ]
    require(kept > 0, f"there is no row to train on: {'; '.join(messages) or 'the data set is empty'}")
    for message in messages:
        warnings.warn(message, stacklevel=2)


def _check(length: int, ending: Ending | Rainbow, too_long: str) -> None:
    check_ending(ending)
    check_name("too_long", too_long, get_args(TooLong))
    positive_int("length", length, least=2)


def as_prompt(question: str, template: str) -> str:
    """A question as rows of such prompts have it; itself where it is written so already.

    Raises:
        ValueError: for a template that needs more than one value.
    """
    parts = template.format_map(dict.fromkeys(template_columns(template), "\0")).split("\0")
    require(
        len(parts) == 2,
        f"the run's prompts are {template!r}, which one question does not fill: write a whole prompt (--as-is)",
    )
    before, after = parts
    whole = question.startswith(before) and question.endswith(after) and bool(before or after)
    return question if whole else f"{before}{question}{after}"


def on_one_day(template: str) -> str:
    """A chat template that writes `DAY` where it would write today's date: what it renders is the same tomorrow."""
    return re.sub(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda call: repr(DAY.strftime(call[2])), template)


def template_columns(template: str) -> list[str]:
    """The columns that a template names."""
    found = []
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"{template!r} is no template ({error}): columns stand in braces, and other braces are doubled"
        ) from None
    for _, name, form, conversion in parts:
        if name is not None:
            if not name or form or conversion or set(name) & set(".["):
                raise ValueError(
                    f"{template!r} may hold only names of columns in braces; double a brace that is meant"
                )
            found += [name] if name not in found else []
    return found


def _turns(conversation: Any, place: str) -> list[dict[str, Any]]:
    """The messages of a conversation, without the keys that only other messages have."""
    turns = [dict(turn) if isinstance(turn, dict) else {} for turn in conversation or []]
    turns = [_without_nulls(turn) for turn in turns]
    for i, turn in enumerate(turns):
        require("role" in turn, f"{place}: message {i} is no {{'role': ..., 'content': ...}}")
    return turns


def _without_nulls(value: Any) -> Any:
    """The value without the keys, at any depth, that hold None."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _tools(offered: Any, place: str) -> list[Any] | None:
    """The tools of a conversation; None for none."""
    if isinstance(offered, str) and offered.strip():
        try:
            offered = json.loads(offered)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: the tools are no JSON text: {error}") from None
    else:
        offered = _without_nulls(offered)
    require(not offered or isinstance(offered, list), f"{place}: the tools are no list: {offered!r}")
    return [json.loads(tool) if isinstance(tool, str) else tool for tool in offered] if offered else None


def _segments(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, Any]],
    answers: list[int],
    place: str,
    tools: list[Any] | None,
) -> list[list[int]]:
    """Tokens of what is given and what is replied, in turn, up to the last of the assistant's messages `answers`."""
    if not answers:
        return []

    def rendered(count: int, ask: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                turns[:count],
                cast(Any, tools),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=ask,
            )
        except (TemplateError, ValueError) as error:
            raise ValueError(f"{place}: the chat template refuses the first {count} messages: {error}") from None
        return cast(str, text)

    template = on_one_day(cast(str, tokenizer.chat_template))
    whole, cuts = rendered(answers[-1] + 1, False), []
    for i in answers:
        for part in (rendered(i, True), rendered(i + 1, False)):
            if not whole.startswith(part):
                at = next(k for k in range(len(part)) if part[: k + 1] != whole[: k + 1])
                raise ValueError(
                    f"{place}: when the conversation goes on, the chat template renders message {i} otherwise: "
                    f"{part[max(at - 20, 0) : at + 20]!r} becomes {whole[max(at - 20, 0) : at + 20]!r}, so the "
                    "prompt is not what the model will be shown; change the template, or try replies='separate'"
                )
            cuts.append(len(part))
    return _cut(tokenizer, whole, cuts[:-1])


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, cuts: list[int]) -> list[list[int]]:
    """Tokens of the text between the cuts. What is before a cut has the tokens it has alone."""

    def encode(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

    tokens, ends = encode(text), [0]
    for i, cut in enumerate(cuts):
        head = encode(text[:cut])
        if tokens[: len(head)] != head:  # a token lies across the cut
            after = [later - cut for later in cuts[i + 1 :]]
            return _cut(tokenizer, text[:cut], cuts[:i]) + _cut(tokenizer, text[cut:], after)
        ends.append(len(head))
    return [tokens[start:end] for start, end in pairwise([*ends, len(tokens)])]

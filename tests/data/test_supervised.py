"""Rows of prompts and their responses, and what they share with conversations."""

import warnings

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import IndependentMasking, SyRM
from unmask.data import Rainbow, RowStream, character_tokenizer, chat_rows, prompt_rows, with_syntax
from unmask.data.supervised import as_prompt


def test_the_prompt_is_given_and_the_response_with_its_end_is_learnt(tokenizers, pairs):
    tokenizer = tokenizers["bpe"]
    (row,) = prompt_rows(pairs(("What is it?", "A fox.")), tokenizer, length=64)
    prompt, response = tokenizer.encode("What is it?\n").tolist(), tokenizer.encode("A fox.").tolist()
    assert row["tokens"] == [*prompt, *response, tokenizer.eos_token_id]
    assert row["maskable"] == [False] * len(prompt) + [True] * (len(response) + 1)


@pytest.mark.parametrize(
    ("ending", "tokens", "maskable"),
    [
        ("trained", [1, 0, 2, 3, 5], [0, 0, 1, 1, 1]),
        ("untrained", [1, 0, 2, 3, 5], [0, 0, 1, 1, 0]),
        ("eos_as_padding", [1, 0, 2, 3, 5, 5, 5, 5], [0, 0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_endings_of_replies(ending, tokens, maskable, pairs):
    tokenizer = character_tokenizer(["a?yz"])  # ? a y z: 0 1 2 3, unknown 4, end 5
    rows = prompt_rows(pairs(("a", "yz")), tokenizer, prompt="{prompt}?", length=8, ending=ending)
    assert rows[0] == {"tokens": tokens, "maskable": [bool(flag) for flag in maskable]}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text("ab {}", max_size=8), st.text("xyz", min_size=1, max_size=8)), min_size=1, max_size=6
    ),
    length=st.integers(2, 14),
    ending=st.sampled_from(["trained", "untrained", "eos_as_padding"]),
)
def test_any_row_that_fits_is_whole_and_nothing_else_is_there(rows, length, ending, pairs):
    tokenizer = character_tokenizer(["ab {}xyz\n"])
    fit = [(p, r) for p, r in rows if len(p) + 1 + len(r) + 1 <= length]
    if not fit:
        with pytest.raises(ValueError, match=f"no row to train on: left out {len(rows)} of {len(rows)} rows"):
            prompt_rows(pairs(*rows), tokenizer, length=length, ending=ending)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = prompt_rows(pairs(*rows), tokenizer, length=length, ending=ending)
    bare = sum(not p.strip() for p, _ in fit)
    counts = {"left out": len(rows) - len(fit), "kept": bare}
    said = {f"{what} {count} of {len(rows)} rows" for what, count in counts.items() if count}
    assert {str(warning.message).split(" rows")[0] + " rows" for warning in told} == said
    decoded = [tokenizer.decode(t for t in row["tokens"] if t != tokenizer.eos_token_id) for row in made]
    assert decoded == [f"{p}\n{r}" for p, r in fit]
    learnt = [[t for t, m in zip(row["tokens"], row["maskable"], strict=True) if m] for row in made]
    assert [tokenizer.decode(t for t in row if t != tokenizer.eos_token_id) for row in learnt] == [r for _, r in fit]
    ends = [row.count(tokenizer.eos_token_id) for row in learnt]
    if ending == "eos_as_padding":
        assert ends == [length - len(p) - 1 - len(r) for p, r in fit]
    else:
        assert ends == [int(ending == "trained")] * len(fit)


def test_templates_name_columns(tokenizers, replies_of):
    data = datasets.Dataset.from_dict({"question": ["1 + 1"], "steps": ["{count}"], "answer": ["2"]})
    tokenizer = tokenizers["bpe"]
    options = {"prompt": "Q: {question} {{x}}\n", "response": "{steps} #### {answer}", "length": 99}
    (row,) = prompt_rows(data, tokenizer, **options)
    assert tokenizer.decode(row["tokens"][:-1]) == "Q: 1 + 1 {x}\n{count} #### 2"
    assert replies_of(row, tokenizer) == ["{count} #### 2<|endoftext|>"]
    with pytest.raises(ValueError, match=r"no column 'task'; it has \['question', 'steps', 'answer'\]"):
        prompt_rows(data, tokenizer, **options | {"prompt": "{task}"})
    for bad in ("{}", "{question.x}", "{question[0]}", "{question!r}", "{question:>9}"):
        with pytest.raises(ValueError, match="names of columns in braces"):
            prompt_rows(data, tokenizer, **options | {"prompt": bad})
    with pytest.raises(ValueError, match="response must name a column"):
        prompt_rows(data, tokenizer, **options | {"response": "yes"})


def test_long_rows_are_never_cut_unasked(tokenizers, pairs, replies_of):
    data, tokenizer = pairs(("ab", "cdefgh"), ("ab", "c"), ("abcdefgh", "c")), tokenizers["characters"]
    with pytest.warns(
        UserWarning, match=r"left out 2 of 3 rows .* longer than 6 tokens \(--data\.length\), first document 0$"
    ):
        assert len(prompt_rows(data, tokenizer, length=6)) == 1
    with pytest.warns(UserWarning, match=r"cut .* 2 of 3 rows"):
        cut = prompt_rows(data, tokenizer, length=6, too_long="cut")
    assert [replies_of(row, tokenizer) for row in cut] == [["cde"], ["c<|endoftext|>"]]
    with pytest.raises(ValueError, match="document 0 has 9 tokens and does not fit into 6"):
        prompt_rows(data, tokenizer, length=6, too_long="refuse")
    exact = prompt_rows(data, tokenizer, length=11, too_long="refuse")
    assert [len(row) for row in exact["tokens"]] == [10, 5, 11]


def test_empty_replies_are_left_out_empty_prompts_told_and_other_types_refused(tokenizers, pairs, replies_of):
    data = pairs(("a", "b"), ("a", None), (None, "c"), ("a", "  "), (" ", None))
    with (
        pytest.warns(UserWarning, match="left out 3 of 5 rows that have no reply, first document 1$"),
        pytest.warns(UserWarning, match="kept 1 of 5 rows whose prompt is empty, first document 2: leave"),
    ):
        rows = prompt_rows(data, tokenizers["bpe"], length=20)
    assert [replies_of(row, tokenizers["bpe"]) for row in rows] == [["b<|endoftext|>"], ["c<|endoftext|>"]]
    with pytest.raises(ValueError, match="no row to train on: left out 1 of 1"):
        prompt_rows(pairs(("a", "")), tokenizers["bpe"], length=20)
    with pytest.raises(TypeError, match="document 0: column 'response' is int, not text"):
        prompt_rows(pairs(("a", 3)), tokenizers["bpe"], length=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ending": "eos"}, "did you mean 'eos_as_padding'"),
        ({"too_long": "drops"}, "did you mean 'drop'"),
        ({"length": 1}, "at least 2"),
    ],
)
def test_bad_options_are_refused(tokenizers, chat_tokenizer, options, message, pairs, chats, two_turns):
    with pytest.raises(ValueError, match=message):
        prompt_rows(pairs(("a", "b")), tokenizers["bpe"], **{"length": 9} | options)
    with pytest.raises(ValueError, match=message):
        chat_rows(chats(two_turns), chat_tokenizer(), **{"length": 9} | options)


def test_a_rainbow_has_at_least_two_colours():
    for tokens in ((), (3,), (3, 3)):
        with pytest.raises(ValueError, match="at least two different tokens"):
            Rainbow(tokens)


def test_syntax_of_prompts_is_maskable_and_marked(tokenizers, pairs):
    tokenizer = tokenizers["characters"]
    rows = prompt_rows(pairs(("a b c", "b b")), tokenizer, length=16)
    syntax = (
        tokenizer.encode("b").tolist() if hasattr(tokenizer.encode("b"), "tolist") else list(tokenizer.encode("b"))
    )
    made = with_syntax(rows, syntax)[0]
    old = rows[0]
    for token, was, now, guide in zip(old["tokens"], old["maskable"], made["maskable"], made["guide"], strict=True):
        is_syntax = token in syntax and not was
        assert now == (was or is_syntax)
        assert guide == float(is_syntax)
    assert sum(made["guide"]) == 1
    batch = IndependentMasking().start(RowStream(with_syntax(rows, syntax)), 1).draw()
    assert set(SyRM(alpha=0.75).weights(batch).unique().tolist()) <= {0.0, 0.25, 0.75}
    with pytest.raises(ValueError, match="no prompt holds"):
        with_syntax(rows, [tokenizer.eos_token_id])
    with pytest.raises(ValueError, match="no column `guide`"):
        SyRM().weights(IndependentMasking().start(RowStream(rows), 1).draw())


def test_a_reply_that_the_tokenizer_cannot_write_is_told_from_none():
    letters = character_tokenizer(alphabet="27")
    rows = datasets.Dataset.from_list([{"prompt": "two", "response": r} for r in ("four", "4", "")])
    with pytest.warns(UserWarning, match="left out") as told:
        assert len(prompt_rows(rows, letters, length=20)) == 1
    characters, reply = (str(warning.message) for warning in told)
    assert "left out 1 of 3 rows of whose reply the tokenizer has no character, first document 1" in characters
    assert "left out 1 of 3 rows that have no reply, first document 2" in reply
    with pytest.raises(
        ValueError, match=r"no row to train on: .*2 of 2 rows of whose reply the tokenizer has no char"
    ):
        prompt_rows(
            datasets.Dataset.from_list([{"prompt": "one", "response": str(n)} for n in (1, 2)]), letters, length=20
        )


@pytest.mark.parametrize(
    ("question", "template", "whole"),
    [
        ("2 + 3?", "{q}\n", "2 + 3?\n"),
        ("2 + 3?\n", "{q}\n", "2 + 3?\n"),
        ("2 + 3?", "Q: {q} A: ", "Q: 2 + 3? A: "),
        ("Q: 2 + 3? A: ", "Q: {q} A: ", "Q: 2 + 3? A: "),
        ("x", "{{{q}}}", "{x}"),
        ("2 + 3?", "{q}", "2 + 3?"),
    ],
)
def test_a_question_is_asked_as_rows_ask_it(question, template, whole):
    assert as_prompt(question, template) == whole


def test_a_question_does_not_fill_two_columns():
    with pytest.raises(ValueError, match=r"one question does not fill: .*--as-is"):
        as_prompt("2 + 3?", "{name}: {q}")

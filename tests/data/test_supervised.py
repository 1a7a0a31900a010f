import warnings

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import IndependentMasking, SyRM
from unmask.data import Rainbow, RowStream, TextTokenizer, character_tokenizer, chat_rows, prompt_rows, with_syntax
from unmask.data.supervised import as_prompt, on_one_day

CHATML = "chatml"  # what `chat_tokenizer` has by default
# No token of its own ends a reply.
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Only the newest reply keeps its thoughts.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + "
    "(m.content if loop.last else m.content.split('|')[-1]) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One and one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "And one?"},
    {"role": "assistant", "content": "Three."},
    {"role": "user", "content": "Thanks!"},
]


def pairs(*rows):
    return datasets.Dataset.from_list([{"prompt": prompt, "response": response} for prompt, response in rows])


def chats(*conversations):
    return datasets.Dataset.from_list([{"messages": conversation} for conversation in conversations])


def replies_of(row, tokenizer):
    """The texts of the runs of maskable tokens of a row."""
    runs, previous = [], False
    for token, maskable in zip(row["tokens"], row["maskable"], strict=True):
        if maskable and not previous:
            runs.append([])
        if maskable:
            runs[-1].append(token)
        previous = maskable
    return [tokenizer.decode(run) for run in runs]


# --- prompt and response ---


def test_the_prompt_is_given_and_the_response_with_its_end_is_learnt(tokenizers):
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
def test_endings_of_replies(ending, tokens, maskable):
    tokenizer = character_tokenizer(["a?yz"])  # ? a y z: 0 1 2 3, unknown 4, end 5
    rows = prompt_rows(pairs(("a", "yz")), tokenizer, prompt="{prompt}?", length=8, ending=ending)
    assert rows[0] == {"tokens": tokens, "maskable": [bool(flag) for flag in maskable]}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab {}", max_size=8), st.text("xyz", min_size=1, max_size=8)), min_size=1, max_size=6),
    st.integers(2, 14),
    st.sampled_from(["trained", "untrained", "eos_as_padding"]),
)
def test_any_row_that_fits_is_whole_and_nothing_else_is_there(rows, length, ending):
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


def test_templates_name_columns(tokenizers):
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


def test_long_rows_are_never_cut_unasked(tokenizers):
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


def test_empty_replies_are_left_out_empty_prompts_told_and_other_types_refused(tokenizers):
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
def test_bad_options_are_refused(tokenizers, chat_tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        prompt_rows(pairs(("a", "b")), tokenizers["bpe"], **{"length": 9} | options)
    with pytest.raises(ValueError, match=message):
        chat_rows(chats(TWO_TURNS), chat_tokenizer(), **{"length": 9} | options)


# --- conversations ---


def asked(tokenizer, turns):
    """What the model is shown when it is to reply to these turns, in transformers' own words."""
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_every_reply_is_maskable_and_nothing_else(chat_tokenizer):
    tokenizer = chat_tokenizer()
    (row,) = chat_rows(chats(TWO_TURNS), tokenizer, length=300)
    assert row["tokens"] == tokenizer.apply_chat_template(TWO_TURNS[:5], return_dict=False)
    assert replies_of(row, tokenizer) == ["Two.<|im_end|>\n", "Three.<|im_end|>\n"]
    for at in (2, 4):  # each prompt is what the model will be shown
        prompt = asked(tokenizer, TWO_TURNS[:at])
        assert row["tokens"][: len(prompt)] == prompt
        assert not row["maskable"][len(prompt) - 1]
        assert row["maskable"][len(prompt)]


def test_replies_apart_see_nothing_that_comes_later(chat_tokenizer):
    tokenizer = chat_tokenizer()
    rows = chat_rows(chats(TWO_TURNS, TWO_TURNS[:3]), tokenizer, length=300, replies="separate")
    assert [replies_of(row, tokenizer) for row in rows] == [
        ["Two.<|im_end|>\n"],
        ["Three.<|im_end|>\n"],
        ["Two.<|im_end|>\n"],
    ]
    assert rows[0] == rows[2]
    assert rows[1]["tokens"][: -sum(rows[1]["maskable"])] == asked(tokenizer, TWO_TURNS[:4])


@settings(max_examples=15, deadline=None)
@given(replies=st.lists(st.text("\n aB.", min_size=1, max_size=6), min_size=1, max_size=3))
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_prompts_are_the_templates_whatever_the_reply(chat_tokenizer, template, replies):
    """Also where a token of the whole text would lie across the start of a reply, such as a double line break."""
    tokenizer = chat_tokenizer(template)
    turns = [
        turn for r in replies for turn in ({"role": "user", "content": "a"}, {"role": "assistant", "content": r})
    ]
    rows = chat_rows(chats(turns), tokenizer, length=300, replies="separate")
    for i, row in enumerate(rows):
        prompt = asked(tokenizer, turns[: 2 * i + 1])
        assert row["tokens"][: len(prompt)] == prompt
        assert row["maskable"] == [j >= len(prompt) for j in range(len(row["tokens"]))]
    (together,) = chat_rows(chats(turns), tokenizer, length=300)
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(together["tokens"]) == text + ("" if template == CHATML else "<|im_end|>")
    first = asked(tokenizer, turns[:1])
    assert together["tokens"][: len(first)] == first


def test_a_token_across_the_boundary_does_occur(chat_tokenizer):
    """The case that the property above is about: without care prompt and reply would share a token."""
    tokenizer = chat_tokenizer("{{ 'th' if messages|length == 1 else 'the' }}")
    whole, prompt = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", "th"))
    assert whole[: len(prompt)] != prompt
    (row,) = chat_rows(chats([{"role": "user"}, {"role": "assistant"}]), tokenizer, length=9)
    assert replies_of(row, tokenizer) == ["e<|im_end|>"]
    assert row["tokens"][: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("template", "ending", "reply"),
    [
        (CHATML, "trained", "Two.<|im_end|>\n"),
        (CHATML, "eos_as_padding", "Two.<|im_end|>\n" + "<|im_end|>" * 7),
        (PLAIN, "trained", "Two.\n<|im_end|>"),
        (PLAIN, "untrained", "Two.\n"),
        (PLAIN, "eos_as_padding", "Two.\n<|im_end|>" + "<|im_end|>" * 7),
    ],
)
def test_endings_of_conversations(chat_tokenizer, template, ending, reply):
    tokenizer = chat_tokenizer(template)
    turns = TWO_TURNS[1:3]
    fits = len(chat_rows(chats(turns), tokenizer, length=300)[0]["tokens"])
    (row,) = chat_rows(chats(turns), tokenizer, length=fits + 7, ending=ending)
    assert replies_of(row, tokenizer) == [reply]


def test_no_end_is_trained_where_it_must_not(chat_tokenizer):
    tokenizer = chat_tokenizer()
    (row,) = chat_rows(chats(TWO_TURNS), tokenizer, length=300, ending="untrained")
    learnt = [t for t, m in zip(row["tokens"], row["maskable"], strict=True) if m]
    assert tokenizer.eos_token_id not in learnt
    assert tokenizer.decode(learnt) == "Two.\nThree.\n"


def test_templates_that_change_earlier_turns_are_refused_together_but_not_apart(chat_tokenizer):
    tokenizer = chat_tokenizer(FORGETS)
    turns = [dict(turn) for turn in TWO_TURNS]
    turns[2]["content"] = "1 + 1 is 2|Two."
    with pytest.raises(ValueError, match=r"document 0: .* renders message 2 otherwise: .*1 \+ 1 is.* becomes .*Two"):
        chat_rows(chats(turns), tokenizer, length=300)
    rows = chat_rows(chats(turns), tokenizer, length=300, replies="separate")
    assert [replies_of(row, tokenizer)[0].split("<")[0] for row in rows] == ["1 + 1 is 2|Two.", "Three."]
    for row, at in zip(rows, (2, 4), strict=True):
        prompt = asked(tokenizer, turns[:at])
        assert row["tokens"][: len(prompt)] == prompt


def test_conversations_without_a_reply_are_counted(chat_tokenizer):
    with pytest.warns(UserWarning, match="left out 2 of 3 rows that have no reply, first document 1$"):
        rows = chat_rows(chats(TWO_TURNS, TWO_TURNS[:2], []), chat_tokenizer(), length=300)
    assert len(rows) == 1


def test_bad_chats_say_what_to_do(chat_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no single chat template: set tokenizer\.chat_template"):
        chat_rows(chats(TWO_TURNS), chat_tokenizer(None), length=300)
    with pytest.raises(ValueError, match=r"no mask token: take it from unmask\.from_pretrained"):
        chat_rows(chats(TWO_TURNS), chat_tokenizer(mask_token=None), length=300)
    refuses = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"document 0: the chat template refuses .* roles must alternate"):
        chat_rows(chats(TWO_TURNS), chat_tokenizer(refuses), length=300)
    with pytest.raises(ValueError, match="document 0: message 0 is no"):
        chat_rows(chats([{"content": "hi"}]), chat_tokenizer(), length=300)
    with pytest.raises(ValueError, match="document 0: the chat template refuses the first 0 messages"):
        chat_rows(chats(TWO_TURNS[2:]), chat_tokenizer(), length=300)


def test_each_kind_of_rows_says_which_tokenizer_it_takes(tokenizers, chat_tokenizer, tmp_path):
    stream = datasets.IterableDataset.from_generator(lambda: pytest.fail("a document was read"))
    options = {"length": 300, "cache": tmp_path, "version": "1"}
    with pytest.raises(
        TypeError, match=r"expected a TextTokenizer, got .*TextTokenizer\.from_hugging_face\(tokenizer\) makes one"
    ):
        prompt_rows(stream, chat_tokenizer(), **options)
    with pytest.raises(TypeError, match=r"with its chat template, got TextTokenizer: .* or use prompt_rows"):
        chat_rows(stream, tokenizers["bpe"], **options)
    plain = TextTokenizer.from_hugging_face(chat_tokenizer())
    assert len(prompt_rows(pairs(("a", "b")), plain, length=9)) == 1


def test_rows_go_through_the_stream(chat_tokenizer):
    rows = chat_rows(chats(TWO_TURNS, TWO_TURNS[:3]), chat_tokenizer(), length=300)
    batch = RowStream(rows).rows(torch.arange(2))
    assert batch.effective_length.tolist() == [sum(row["maskable"]) for row in rows]
    assert not (batch.maskable & ~batch.attention).any()


# As Llama's has it, and gpt-oss's.
DATED = [
    "{%- if not day is defined -%}{%- if strftime_now is defined -%}{%- set day = strftime_now('%d %b %Y') -%}"
    "{%- else -%}{%- set day = '26 Jul 2024' -%}{%- endif -%}{%- endif -%}{{ day + '\\n' }}",
    '{{ strftime_now("%Y-%m-%d") }}',
    "{{ strftime_now( '%d.%m.' ) }}",  # as a formatter leaves it
]
WRITTEN = ["26 Jul 2024", "2024-07-26", "26.07."]


@pytest.mark.parametrize(("beginning", "written"), list(zip(DATED, WRITTEN, strict=True)))
def test_rows_and_questions_are_the_same_on_another_day(chat_tokenizer, beginning, written):
    """A run that was resumed the next day, and a cache that was read then, had rows of another date."""
    tokenizer = chat_tokenizer(beginning + PLAIN)
    (row,) = chat_rows(chats(TWO_TURNS), tokenizer, length=300)
    assert tokenizer.decode(row["tokens"]).startswith(written)
    today = tokenizer.apply_chat_template(TWO_TURNS[:2], tokenize=False, add_generation_prompt=True)
    assert (
        on_one_day(today)
        == today
        != tokenizer.apply_chat_template(
            TWO_TURNS[:2],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=on_one_day(tokenizer.chat_template),
        )
    )


@pytest.mark.parametrize("change", ["template", "messages", "replies", "bos"])
def test_the_cache_knows_template_and_settings(chat_tokenizer, tmp_path, change):
    options = {"length": 300, "cache": tmp_path}
    chat_rows(chats(TWO_TURNS), chat_tokenizer(), **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 1
    chat_rows(chats(TWO_TURNS), chat_tokenizer(), **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 1
    tokenizer = chat_tokenizer(PLAIN if change == "template" else CHATML)
    if change == "bos":  # a special token that templates write, though this one does not
        tokenizer.bos_token = "<|im_start|>"
    data = chats(TWO_TURNS[:3] if change == "messages" else TWO_TURNS)
    chat_rows(data, tokenizer, replies="separate" if change == "replies" else "together", **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 2


@pytest.mark.parametrize("rows_of", ["prompt", "chat"])
def test_rainbow_padding_cycles_behind_one_end_of_text(tokenizers, chat_tokenizer, rows_of, tmp_path):
    """Every filling is learnt, and no padding token stands for the end of the text."""
    rainbow = Rainbow((3, 4, 5))
    if rows_of == "prompt":
        tokenizer = tokenizers["characters"]
        eos = tokenizer.eos_token_id
        rows = prompt_rows(pairs(("ab", "c")), tokenizer, length=12, ending=rainbow, cache=tmp_path)
    else:
        tokenizer = chat_tokenizer(PLAIN, eos="<|im_end|>")
        eos = tokenizer.eos_token_id
        rows = chat_rows(chats(TWO_TURNS[1:3]), tokenizer, length=64, ending=rainbow)
    tokens, maskable = rows[0]["tokens"], rows[0]["maskable"]
    end = tokens.index(eos)
    filling = tokens[end + 1 :]
    assert len(filling) > 3
    assert filling == [(3, 4, 5)[k % 3] for k in range(len(filling))]
    assert all(maskable[end:])


def test_a_rainbow_has_at_least_two_colours():
    for tokens in ((), (3,), (3, 3)):
        with pytest.raises(ValueError, match="at least two different tokens"):
            Rainbow(tokens)


def test_syntax_of_prompts_is_maskable_and_marked(tokenizers):
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

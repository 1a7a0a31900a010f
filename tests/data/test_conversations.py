"""Rows of conversations, as a chat template renders them."""

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data import Rainbow, RowStream, TextTokenizer, chat_rows, prompt_rows
from unmask.data.supervised import on_one_day

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


def asked(tokenizer, turns):
    """What the model is shown when it is to reply to these turns, in transformers' own words."""
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_every_reply_is_maskable_and_nothing_else(chat_tokenizer, chats, replies_of, two_turns):
    tokenizer = chat_tokenizer()
    (row,) = chat_rows(chats(two_turns), tokenizer, length=300)
    assert row["tokens"] == tokenizer.apply_chat_template(two_turns[:5], return_dict=False)
    assert replies_of(row, tokenizer) == ["Two.<|im_end|>\n", "Three.<|im_end|>\n"]
    for at in (2, 4):  # each prompt is what the model will be shown
        prompt = asked(tokenizer, two_turns[:at])
        assert row["tokens"][: len(prompt)] == prompt
        assert not row["maskable"][len(prompt) - 1]
        assert row["maskable"][len(prompt)]


def test_replies_apart_see_nothing_that_comes_later(chat_tokenizer, chats, replies_of, two_turns):
    tokenizer = chat_tokenizer()
    rows = chat_rows(chats(two_turns, two_turns[:3]), tokenizer, length=300, replies="separate")
    assert [replies_of(row, tokenizer) for row in rows] == [
        ["Two.<|im_end|>\n"],
        ["Three.<|im_end|>\n"],
        ["Two.<|im_end|>\n"],
    ]
    assert rows[0] == rows[2]
    assert rows[1]["tokens"][: -sum(rows[1]["maskable"])] == asked(tokenizer, two_turns[:4])


@settings(max_examples=15, deadline=None)
@given(replies=st.lists(st.text("\n aB.", min_size=1, max_size=6), min_size=1, max_size=3))
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_prompts_are_the_templates_whatever_the_reply(chat_tokenizer, template, replies, chats):
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


def test_a_token_across_the_boundary_does_occur(chat_tokenizer, chats, replies_of):
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
def test_endings_of_conversations(chat_tokenizer, template, ending, reply, chats, replies_of, two_turns):
    tokenizer = chat_tokenizer(template)
    turns = two_turns[1:3]
    fits = len(chat_rows(chats(turns), tokenizer, length=300)[0]["tokens"])
    (row,) = chat_rows(chats(turns), tokenizer, length=fits + 7, ending=ending)
    assert replies_of(row, tokenizer) == [reply]


def test_no_end_is_trained_where_it_must_not(chat_tokenizer, chats, two_turns):
    tokenizer = chat_tokenizer()
    (row,) = chat_rows(chats(two_turns), tokenizer, length=300, ending="untrained")
    learnt = [t for t, m in zip(row["tokens"], row["maskable"], strict=True) if m]
    assert tokenizer.eos_token_id not in learnt
    assert tokenizer.decode(learnt) == "Two.\nThree.\n"


def test_templates_that_change_earlier_turns_are_refused_together_but_not_apart(
    chat_tokenizer, chats, replies_of, two_turns
):
    tokenizer = chat_tokenizer(FORGETS)
    turns = [dict(turn) for turn in two_turns]
    turns[2]["content"] = "1 + 1 is 2|Two."
    with pytest.raises(ValueError, match=r"document 0: .* renders message 2 otherwise: .*1 \+ 1 is.* becomes .*Two"):
        chat_rows(chats(turns), tokenizer, length=300)
    rows = chat_rows(chats(turns), tokenizer, length=300, replies="separate")
    assert [replies_of(row, tokenizer)[0].split("<")[0] for row in rows] == ["1 + 1 is 2|Two.", "Three."]
    for row, at in zip(rows, (2, 4), strict=True):
        prompt = asked(tokenizer, turns[:at])
        assert row["tokens"][: len(prompt)] == prompt


def test_conversations_without_a_reply_are_counted(chat_tokenizer, chats, two_turns):
    with pytest.warns(UserWarning, match="left out 2 of 3 rows that have no reply, first document 1$"):
        rows = chat_rows(chats(two_turns, two_turns[:2], []), chat_tokenizer(), length=300)
    assert len(rows) == 1


def test_bad_chats_say_what_to_do(chat_tokenizer, tmp_path, chats, two_turns):
    with pytest.raises(ValueError, match=r"no single chat template: set tokenizer\.chat_template"):
        chat_rows(chats(two_turns), chat_tokenizer(None), length=300)
    with pytest.raises(ValueError, match=r"no mask token: take it from unmask\.from_pretrained"):
        chat_rows(chats(two_turns), chat_tokenizer(mask_token=None), length=300)
    refuses = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"document 0: the chat template refuses .* roles must alternate"):
        chat_rows(chats(two_turns), chat_tokenizer(refuses), length=300)
    with pytest.raises(ValueError, match="document 0: message 0 is no"):
        chat_rows(chats([{"content": "hi"}]), chat_tokenizer(), length=300)
    with pytest.raises(ValueError, match="document 0: the chat template refuses the first 0 messages"):
        chat_rows(chats(two_turns[2:]), chat_tokenizer(), length=300)


def test_each_kind_of_rows_says_which_tokenizer_it_takes(tokenizers, chat_tokenizer, tmp_path, pairs):
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


def test_rows_go_through_the_stream(chat_tokenizer, chats, two_turns):
    rows = chat_rows(chats(two_turns, two_turns[:3]), chat_tokenizer(), length=300)
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
def test_rows_and_questions_are_the_same_on_another_day(chat_tokenizer, beginning, written, chats, two_turns):
    """A run that was resumed the next day, and a cache that was read then, had rows of another date."""
    tokenizer = chat_tokenizer(beginning + PLAIN)
    (row,) = chat_rows(chats(two_turns), tokenizer, length=300)
    assert tokenizer.decode(row["tokens"]).startswith(written)
    today = tokenizer.apply_chat_template(two_turns[:2], tokenize=False, add_generation_prompt=True)
    assert (
        on_one_day(today)
        == today
        != tokenizer.apply_chat_template(
            two_turns[:2],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=on_one_day(tokenizer.chat_template),
        )
    )


@pytest.mark.parametrize("change", ["template", "messages", "replies", "bos"])
def test_the_cache_knows_template_and_settings(chat_tokenizer, tmp_path, change, chats, two_turns):
    options = {"length": 300, "cache": tmp_path}
    chat_rows(chats(two_turns), chat_tokenizer(), **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 1
    chat_rows(chats(two_turns), chat_tokenizer(), **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 1
    tokenizer = chat_tokenizer(PLAIN if change == "template" else CHATML)
    if change == "bos":  # a special token that templates write, though this one does not
        tokenizer.bos_token = "<|im_start|>"
    data = chats(two_turns[:3] if change == "messages" else two_turns)
    chat_rows(data, tokenizer, replies="separate" if change == "replies" else "together", **options)
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 2


@pytest.mark.parametrize("rows_of", ["prompt", "chat"])
def test_rainbow_padding_cycles_behind_one_end_of_text(
    tokenizers, chat_tokenizer, rows_of, tmp_path, pairs, chats, two_turns
):
    """Every filling is learnt, and no padding token stands for the end of the text."""
    rainbow = Rainbow((3, 4, 5))
    if rows_of == "prompt":
        tokenizer = tokenizers["characters"]
        eos = tokenizer.eos_token_id
        rows = prompt_rows(pairs(("ab", "c")), tokenizer, length=12, ending=rainbow, cache=tmp_path)
    else:
        tokenizer = chat_tokenizer(PLAIN, eos="<|im_end|>")
        eos = tokenizer.eos_token_id
        rows = chat_rows(chats(two_turns[1:3]), tokenizer, length=64, ending=rainbow)
    tokens, maskable = rows[0]["tokens"], rows[0]["maskable"]
    end = tokens.index(eos)
    filling = tokens[end + 1 :]
    assert len(filling) > 3
    assert filling == [(3, 4, 5)[k % 3] for k in range(len(filling))]
    assert all(maskable[end:])

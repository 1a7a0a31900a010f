"""Chats that call tools: what the template is told of them, and what of the calls is learnt."""

import datasets
import pytest

from unmask.data import chat_rows

WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | map(attribute='name') | join(' ')) }}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def calling(name, **arguments):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
    return [{"role": "user", "content": "Go."}, call]


def learnt(row, tokenizer):
    """The text of a row's maskable tokens: its one reply."""
    return tokenizer.decode(
        [token for token, maskable in zip(row["tokens"], row["maskable"], strict=True) if maskable]
    )


def test_tools_reach_the_template_and_null_arguments_are_not_learnt(chat_tokenizer):
    """A table gives every call the arguments of all others, as nulls."""
    tokenizer = chat_tokenizer(WITH_TOOLS)
    table = datasets.Dataset.from_list(
        [
            {"messages": calling("add", a=1), "tools": [{"name": "add", "only": None}]},
            {"messages": calling("move", place={"x": 2}), "tools": [{"name": "move", "only": 3}]},
            {"messages": calling("wait"), "tools": None},
        ]
    )
    assert "place" in table[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]  # the effect is there
    rows = chat_rows(table, tokenizer, length=200)
    assert [learnt(row, tokenizer).split("<")[0] for row in rows] == ['{"a": 1}', '{"place": {"x": 2}}', "{}"]
    texts = [tokenizer.decode(row["tokens"]) for row in rows]
    assert [text.split("<|im_end|>")[0] for text in texts] == [
        "<|im_start|>system\nadd",
        "<|im_start|>system\nmove",
        "<|im_start|>user\nGo.",
    ]
    stream = chat_rows(table.to_iterable_dataset(), tokenizer, length=200)
    assert stream.to_list() == rows.to_list()


def test_tools_may_be_json_text(chat_tokenizer):
    tokenizer = chat_tokenizer(WITH_TOOLS)
    whole = {"messages": calling("add", a=1), "tools": '[{"name": "add"}]'}
    parts = {"messages": calling("add", a=1), "tools": ['{"name": "add"}']}
    one, two = (chat_rows(datasets.Dataset.from_list([row]), tokenizer, length=200) for row in (whole, parts))
    assert one[0] == two[0]
    assert "system\nadd" in tokenizer.decode(one[0]["tokens"])
    bad = datasets.Dataset.from_list([whole | {"tools": "[{"}])
    with pytest.raises(ValueError, match=r"document 0.*the tools are no JSON text"):
        chat_rows(bad, tokenizer, length=200)

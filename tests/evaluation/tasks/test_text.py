"""Questions in words: rows, final answers, and choices by likelihood."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import Decoding, MaskedDiffusionLM, RowStream
from unmask.config import from_json, to_json
from unmask.data.tokenizers import TextTokenizer, character_tokenizer
from unmask.evaluation.likelihood import LikelihoodConfig
from unmask.evaluation.tasks import AnswerTask, ChoiceTask, ReasoningTask, final_answer

ROWS = [
    {"question": "2+3?", "answer": "2+3=5\n#### 5"},
    {"question": "Six boxes of 200?", "answer": "6*200=1200\nso many\n#### 1,200"},
    {"question": "half of 9?", "answer": "9/2 = 4.5\n#### 4.5"},
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3, then 4.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $1,200.50 dollars", "1200.5"),
        ("#### -3.00", "-3"),
        ("first #### 5\nno, #### 6\n", "6"),
        ("#### 8\nand 9", "8"),
        ("The answer is 42.", "42"),
        ("It is 50%.", "50"),
        ("10 - 4 is 6", "6"),
        ("from 3-5", "5"),
        ("temperature = -5", "-5"),
        ("-0", "0"),
        (".5", "0.5"),
        ("007", "7"),
        ("1000000000000000000000001", "1000000000000000000000001"),
        ("9" * 40 + "1", "9" * 40 + "1"),
        ("-" + "9" * 40 + ".10", "-" + "9" * 40 + ".1"),
        ("100", "100"),
        ("1,2", "2"),
        ("#### The  Red\thouse.", "the red house"),
        ("#### ", None),
        ("no number", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@given(value=st.integers(-(10**9), 10**9) | st.integers(-(10**60), 10**60), before=st.text(max_size=20))
def test_every_way_to_write_a_number_is_the_same_answer(value, before):
    sign, size = ("-" if value < 0 else ""), abs(value)
    for written in (f"{value}", f"{value:,}", f"{sign}${size}", f"{value}.00", f"{value}."):
        assert final_answer(f"{before}\n#### {written}") == str(value)
        assert final_answer(f"so it is {written}") == str(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer's folder and the questions as a file."""
    path = tmp_path_factory.mktemp("questions")
    texts = [row["question"] + "\n" + row["answer"] for row in ROWS] + [
        "abcdefghijklmnopqrstuvwxyz .:0123456789-+*/=?"
    ]
    character_tokenizer(texts).save(path)
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def _answer_task(folder, **options):
    return AnswerTask(tokenizer=str(folder), source=str(folder / "rows.jsonl"), answer_length=30, **options)


def _tokens(dataset):
    return RowStream(dataset).rows(torch.arange(len(dataset)))


def _oracle(oracle, task, data, answers=None):
    tokenizer = TextTokenizer.load(task.tokenizer)
    rows = _tokens(data)
    tokens = rows.tokens.clone()
    for i, text in enumerate(answers or []):
        new = tokenizer.encode(text).tolist()
        tokens[i, rows.maskable[i]] = torch.tensor(new + [tokenizer.eos_token_id] * (task.answer_length - len(new)))
    return oracle(rows, tokens, tokenizer.vocab_size, tokenizer.mask_token_id)


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding("left_to_right", 3), Decoding(block_size=8, threshold=0.9)]
)
def test_known_answers_are_right_for_ragged_prompts(oracle, folder, decoding):
    task = _answer_task(folder, decoding=decoding)
    data = task.load()
    found = task.evaluate(_oracle(oracle, task, data), data)
    assert found["solved"] == 1.0
    assert {name: s["puzzles"] for name, s in found["strata"].items()} == {"1 lines": 2, "2 lines": 1}


def test_only_the_final_answer_counts_and_the_text_ends_with_the_end_of_text(oracle, folder):
    task = _answer_task(folder)
    data = task.load()
    found = task.evaluate(_oracle(oracle, task, data, ["5+0\n#### 5.0", "#### 1,201", "it is 9/2=4.5"]), data)
    assert found["solved"] == pytest.approx(2 / 3)
    assert found["strata"]["2 lines"]["solved"] == 0.0
    tokenizer = TextTokenizer.load(folder)
    rows = _tokens(data)
    late = rows.tokens.clone()
    where = rows.maskable[0].nonzero()[:, 0]
    late[0, where[0]] = tokenizer.eos_token_id  # what follows the end of the text is not read
    assert task.right(data, rows, late).tolist() == [False, True, True]


def test_decoding_stops_at_each_answers_end(oracle, folder):
    task = _answer_task(folder, decoding=Decoding(policy="left_to_right"))
    data, forwards = task.load(), []
    model = _oracle(oracle, task, data)
    predict = model.predict
    model.predict = lambda *args, **options: forwards.append(len(args[0])) or predict(*args, **options)
    assert task.evaluate(model, data)["solved"] == 1
    tokenizer = TextTokenizer.load(folder)
    assert sum(forwards) == sum(len(tokenizer.encode(row["answer"])) + 1 for row in ROWS)


def test_rows_are_prompt_and_answer(folder):
    task = _answer_task(folder, prompt="q: {question} a: ")
    tokenizer, data = TextTokenizer.load(folder), task.load(2)
    assert len(data) == 2
    for row, source in zip(data, ROWS, strict=False):
        prompt = [t for t, m in zip(row["tokens"], row["maskable"], strict=True) if not m]
        answer = [t for t, m in zip(row["tokens"], row["maskable"], strict=True) if m]
        assert tokenizer.decode(prompt) == f"q: {source['question']} a: "
        assert len(answer) == 30
        assert tokenizer.decode([t for t in answer if t != tokenizer.eos_token_id]) == source["answer"]


def test_answers_that_are_numbers_are_read_as_written(folder, tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"question": "6 * 7", "answer": 42}\n{"question": "1 - 3", "answer": -2}\n')
    task = AnswerTask(tokenizer=str(folder), source=str(tmp_path / "sums.jsonl"))
    rows = task.load()
    assert rows["answer"] == ["42", "-2"]
    assert task.judge(["it is 42", "#### 2"], rows) == [True, False]


@pytest.mark.parametrize(("question", "answer", "lacks"), [(None, 1, "question"), ("why?", None, "final answer")])
def test_what_is_lacking_of_a_question_is_told_with_its_row(folder, tmp_path, question, answer, lacks):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"question": question, "answer": answer}) + "\n")
    with pytest.raises(ValueError, match=rf"row 0 of .*bad\.jsonl has no {lacks}"):
        AnswerTask(tokenizer=str(folder), source=str(tmp_path / "bad.jsonl")).load()


def test_what_cannot_be_judged_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="prompt must hold"):
        _answer_task(folder, prompt="nothing")
    with pytest.raises(ValueError, match="cannot read questions"):
        AnswerTask(tokenizer=str(folder), source=str(tmp_path / "none.jsonl")).load()
    with pytest.raises(ValueError, match=r"rows.jsonl:1 has no column 'reply'; it has \['question', 'answer'\]"):
        _answer_task(folder, columns=("question", "reply")).load()
    (tmp_path / "bad.jsonl").write_text('{"question": "why?", "answer": "because"}\n')
    with pytest.raises(ValueError, match=r"row 0 of .* has no final answer"):
        AnswerTask(tokenizer=str(folder), source=str(tmp_path / "bad.jsonl")).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1+1?", "answer"', "rows.jsonl:3 is not JSON: .* at column"),
        ('["1+1?", "2"]', "rows.jsonl:3 is a JSON list"),
        ('{"question": "1+1?"}', "rows.jsonl:3 has no column 'answer'"),
        ('{"question": "1+1?", "answer": 2}', "rows.jsonl:3: column 'answer' is int, str in the lines before"),
    ],
)
def test_a_bad_line_of_questions_is_named(folder, tmp_path, line, message):
    good = json.dumps({"question": "1\u2028+\u00851?", "answer": "2"}, ensure_ascii=False)  # no ends of lines
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{good}\n\n{line}\n", encoding="utf-8")
    task = AnswerTask(tokenizer=str(folder), source=str(file))
    assert len(task.load(1)) == 1
    with pytest.raises(ValueError, match=message):
        task.load()


CHOICES = [
    {"question": "ab", "choices": ["cat", "do", "fish"], "answer": 1, "level": "easy"},
    {"question": "cd", "choices": ["a", "bcd"], "answer": 0, "level": "easy"},
    {"question": "ef", "choices": ["zz", "yyy"], "answer": 1, "level": "hard"},
]


@pytest.fixture(scope="module")
def choices(folder):
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    return {"tokenizer": str(folder), "source": str(folder / "choices.jsonl"), "stratum": "level"}


class _Letters(torch.nn.Module):
    """Every position has the same logits, whatever is visible: the likelihood is a product of letters."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits, requires_grad=False)

    def forward(self, input_ids, attention_mask=None):
        shape = (*input_ids.shape, len(self.logits))
        return type("Output", (), {"last_hidden_state": self.logits.expand(shape)})


def _letters(folder, favourites):
    tokenizer = TextTokenizer.load(folder)
    logits = torch.zeros(tokenizer.vocab_size, dtype=torch.float64)
    for letter, value in favourites.items():
        logits[tokenizer.encode(letter)] = value
    head = torch.nn.Linear(len(logits), len(logits), bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(logits)))
    return MaskedDiffusionLM(_Letters(logits), head, tokenizer.mask_token_id)


def test_the_most_likely_choice_is_taken_and_counted_by_stratum(folder, choices):
    """Letters are independent, so any masks give the exact likelihood."""
    task = ChoiceTask(**choices, likelihood=LikelihoodConfig(samples=2))
    found = task.evaluate(_letters(folder, {"d": 3.0, "o": 3.0, "y": -9.0}), task.load())
    assert found["puzzles"] == 3
    assert {name: (s["solved"], s["puzzles"]) for name, s in found["strata"].items()} == {
        "easy": (1.0, 2),  # "do" wins by its letters, "a" because it is short
        "hard": (0.0, 1),
    }


def test_length_can_be_divided_out(folder, choices):
    """Per token "zz" and "yyy" compare by letter, not by length."""
    model = _letters(folder, {"y": 0.5})
    solved = {
        per: ChoiceTask(**choices, per=per).evaluate(model, ChoiceTask(**choices, per=per).load())
        for per in ("row", "token", "character")
    }
    assert [solved[per]["strata"]["hard"]["solved"] for per in solved] == [0.0, 1.0, 1.0]


def test_batches_change_no_choice(folder, choices):
    model, task = _letters(folder, {"d": 3.0}), ChoiceTask(**choices)
    small = ChoiceTask(**choices, batch_size=3)
    a, b = task.evaluate(model, task.load()), small.evaluate(model, small.load())
    assert a["solved"] == b["solved"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)


def test_bad_choices_are_refused(folder, choices, tmp_path):
    for asked, right in (
        (["a", "b"], 2),
        (["a", "b"], "B"),
        (["a", "b"], 0.5),
        (["a", ""], 0),
        ("ab", 0),
        (["a"], 0),
    ):
        row = {"question": "q", "choices": asked, "answer": right}
        (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=r"row 0 of .* the place of the right one, from 0; got"):
            ChoiceTask(tokenizer=str(folder), source=str(tmp_path / "bad.jsonl")).load()
    with pytest.raises(ValueError, match=r"per must be 'row' or .*, got 'letter'"):
        ChoiceTask(**choices, per="letter")


def test_tasks_round_trip_as_parts_of_a_run(folder, choices):
    tasks = (
        _answer_task(folder, decoding=Decoding(steps=4, block_size=8, remasking=0.1)),
        ChoiceTask(**choices, per="token"),
        ReasoningTask(tokenizer=str(folder), names=("chain_sum", "gcd")),
    )
    for task in tasks:
        assert from_json(json.loads(json.dumps(to_json(task)))) == task


def test_reasoning_without_its_library_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'pip install "unmask\[reasoning\]"'):
        ReasoningTask(tokenizer=str(folder), names=("basic_arithmetic",)).load(1)
    with pytest.raises(ValueError, match="names must hold at least one"):
        ReasoningTask(tokenizer=str(folder), names=())


def test_reasoning_questions_are_judged_by_their_library(oracle, tmp_path):
    pytest.importorskip("reasoning_gym")
    names = ("basic_arithmetic", "chain_sum")
    character_tokenizer([chr(i) for i in range(32, 127)] + ["\n"]).save(tmp_path)
    task = ReasoningTask(tokenizer=str(tmp_path), names=names, puzzles=6, final_puzzles=10, answer_length=12)
    data = task.load(6)
    assert data["stratum"][:] == [names[i % 2] for i in range(6)]
    assert data["question"][:] == task.load(10)["question"][:6]
    found = task.evaluate(_oracle(oracle, task, data), data)
    assert found["solved"] == 1.0
    wrong = [answer if i % 2 else "0.5" for i, answer in enumerate(data["answer"])]
    found = task.evaluate(_oracle(oracle, task, data, wrong), data)
    assert {name: s["solved"] for name, s in found["strata"].items()} == {names[0]: 0.0, names[1]: 1.0}
    with pytest.raises(ValueError, match="no data set 'basic_aritmetic'; did you mean 'basic_arithmetic'"):
        ReasoningTask(tokenizer=str(tmp_path), names=("basic_aritmetic",)).load(1)

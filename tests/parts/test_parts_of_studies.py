"""Parts that the studies in experiments/ are made of: sums, addition, evaluations of final models."""

from __future__ import annotations

import math
import re

import pytest
import torch

from unmask import ELBO, Blockwise, ExactCount, IndependentMasking, LikelihoodConfig, RowStream
from unmask.data.sums import sums_lengths, sums_tokenizer, worked_sums
from unmask.evaluation.tasks import AdditionTask, SumsTask
from unmask.parts import (
    AdditionData,
    AdditionModel,
    GeneratedTexts,
    LikelihoodBy,
    OrderLikelihood,
    TextData,
    TextLikelihood,
    TextModel,
    WorkedSums,
)

FEW = 200


@pytest.mark.parametrize("terms", [3, 4, 6])
def test_sums_are_worked_out_rightly_within_their_lengths(terms):
    pytest.importorskip("reasoning_gym")
    question, answer = sums_lengths(terms)
    for example in worked_sums(terms, 50):
        steps = example["answer"].split()
        assert len(steps) == terms - 1
        for step in steps:
            left, right = step.split("=")
            assert eval(left) == int(right)
        assert int(steps[-1].split("=")[1]) == eval(example["question"].replace("=", ""))
        assert len(example["question"]) == question
        assert len(example["answer"]) < answer


def test_sums_that_are_asked_were_never_trained_on():
    pytest.importorskip("reasoning_gym")
    data, task = WorkedSums(3, FEW), SumsTask(terms=3, questions=FEW)
    tokenizer, asked = sums_tokenizer(), task.load()

    def questions(rows):
        return {tokenizer.decode(row).split("\n")[0] for row in rows["tokens"]}

    trained, held_out = questions(data.load()), questions(data.held_out())
    assert len(trained) > 100
    assert not trained & (held_out | set(asked["question"]))
    assert not held_out & set(asked["question"])

    rows = RowStream(asked).rows(torch.arange(len(asked)))
    assert task.right(asked, rows, rows.tokens).all()
    wrong = rows.tokens.clone()
    place = [re.search(r"\d+$", text).start() for text in asked["answer"]]
    for row, at in enumerate(place):  # another first digit of the last number
        at += 1 + sums_lengths(3)[0]
        wrong[row, at] = tokenizer.encode("1" if tokenizer.decode([int(wrong[row, at])]) != "1" else "2")[0]
    assert not task.right(asked, rows, wrong).any()


def test_without_reasoning_gym_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'pip install "unmask\[reasoning\]"'):
        WorkedSums(3, 31).load()
    with pytest.raises(ValueError, match="terms must be an integer of at least 3"):
        WorkedSums(1, 31).load()


@pytest.mark.parametrize("questions", [1, 2, 3])
def test_so_few_questions_that_a_part_has_none_are_refused(questions):
    data = WorkedSums(3, questions)
    with pytest.raises(ValueError, match=f"of {questions} questions none is for"):
        (data.load(), data.held_out())


def test_the_adding_model_knows_where_digits_stand():
    torch.manual_seed(0)
    model, rows = AdditionModel(3, width=32).build(), AdditionData(3, rows=20).held_out()
    places = model.backbone.get_submodule("wpe").weight
    assert places.shape == (12, 32)
    cosine = torch.nn.functional.cosine_similarity
    units, other = (
        cosine(places[2], places[6], dim=0),
        cosine(places[2], places[4], dim=0),
    )
    assert units > other
    found = AdditionTask(digits=3, puzzles=4, final_puzzles=4).start()(model, False)
    assert found["puzzles"] == 4
    assert len(rows["tokens"][0]) == 12


@pytest.fixture(scope="module")
def letters():
    torch.manual_seed(0)
    tokenizer = TextData().tokenizer()
    size = {"layers": 1, "width": 16, "heads": 2, "positions": 32, "shifted": True}
    return TextModel(tokenizer.vocab_size, tokenizer.mask_token_id, **size).build(), tokenizer


def test_final_models_are_measured_on_other_texts(letters, tmp_path):
    model, tokenizer = letters
    (tmp_path / "other.txt").write_text("the cat sat on the mat " * 40)
    for source, split in (("sotu", "test"), (str(tmp_path / "other.txt"), "all")):
        likely = TextLikelihood(source, split, rows=4, length=24)
        with pytest.raises(ValueError, match="a maskable first position"):  # a shifted model needs some
            likely.start_text(None, tokenizer)(model, True)
    texts = GeneratedTexts(rows=3, length=12)
    model.shifted = False
    other = TextLikelihood(str(tmp_path / "other.txt"), "all", rows=4, length=24)
    found = other.start_text(None, tokenizer)(model, True)
    assert found["rows"] == 4
    assert found["interval"][0] < found["nats_per_token"] < found["interval"][1]
    assert found["nats_per_token"] == pytest.approx(math.log(tokenizer.vocab_size - 1), rel=0.1)  # nothing is learnt
    made = texts.start_text(None, tokenizer)(model, True)
    model.shifted = True
    assert 0 < made["entropy, nats"] <= math.log(tokenizer.vocab_size)
    assert 0 < made["distinct-1"] <= made["distinct-2"] <= made["distinct-3"] <= 1


def test_likelihood_by_blocks_of_one_is_that_of_an_order(letters, dataset_of):
    """Both are exact from left to right, so they agree to rounding."""
    model, _ = letters
    rows = dataset_of([9, 9, 9]).map(lambda row: {"tokens": [token % 26 for token in row["tokens"]]})
    noise = LikelihoodConfig(Blockwise(IndependentMasking(mask=ExactCount()), 1), samples=1, objective=ELBO())
    by_blocks = LikelihoodBy(noise).start(rows)(model, True)
    in_order = OrderLikelihood("left_to_right", 1).start(rows)(model, True)
    assert by_blocks["rows"] == in_order["rows"] == 3
    assert by_blocks["nats_per_token"] == pytest.approx(in_order["nats_per_token"], rel=1e-5)

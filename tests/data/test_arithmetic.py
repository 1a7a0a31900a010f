from collections import Counter

import numpy as np
import pytest
import torch

from unmask.data import RowStream, check_rows
from unmask.data.arithmetic import (
    EQUALS_TOKEN,
    MASK_TOKEN,
    PLUS_TOKEN,
    VOCAB_SIZE,
    answer_of,
    is_correct,
    load_addition,
    longest_carry_chain,
    strata_names,
)


def columns(split, **options):
    return load_addition(split, **options).with_format("numpy")[:]


def numbers(digits):
    """The integers that rows of digits [n, D] write, of any size."""
    return [int("".join(map(str, row))) for row in digits.tolist()]


def operands(tokens):
    digits = tokens.shape[1] // 3 - 1
    return tokens[:, :digits], tokens[:, digits + 1 : 2 * digits + 1]


def pairs(tokens):
    """The unordered pairs {a, b} of rows."""
    return {tuple(sorted(pair)) for pair in zip(*map(numbers, operands(tokens)), strict=True)}


def chain_by_hand(a, b):
    """Follow each carry from where it starts."""
    totals = [x + y for x, y in zip(a[::-1], b[::-1], strict=True)]
    longest = 0
    for start, total in enumerate(totals):
        if total >= 10:
            end = start + 1
            while end < len(totals) and totals[end] == 9:
                end += 1
            longest = max(longest, end - start)
    return longest


@pytest.fixture(scope="module")
def rows():
    return {split: columns(split, rows=4000) for split in ("train", "test")}


# --- the longest carry chain ---


def test_chain_of_every_pair_of_two_digits():
    a, b = np.divmod(np.arange(10_000), 100)
    a, b = (np.stack(np.divmod(x, 10), axis=1) for x in (a, b))
    assert longest_carry_chain(a, b).tolist() == [chain_by_hand(*pair) for pair in zip(a, b, strict=True)]


def test_chain_of_random_pairs():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 10, (3000, 7))
    b = np.where(rng.random(a.shape) < 0.6, 9 - a, rng.integers(0, 10, a.shape))
    expected = [chain_by_hand(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    assert set(expected) == set(range(8))
    assert longest_carry_chain(a, b).tolist() == expected
    assert longest_carry_chain(torch.tensor(b), torch.tensor(a)).tolist() == expected


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ([1, 2, 3], [4, 5, 6], 0),  # nothing to carry; 9 alone carries nothing
        ([9, 9, 9], [0, 0, 1], 3),  # one carry runs through the whole number
        ([9, 9, 9], [9, 9, 9], 1),  # every place carries, none depends on another
        ([4, 4, 5], [5, 5, 5], 3),
        ([5, 4, 4], [5, 5, 5], 1),  # a carry only runs to the left
    ],
)
def test_chain_of_known_sums(a, b, length):
    assert longest_carry_chain(np.array(a), np.array(b)) == length


# --- the rows ---


@pytest.mark.parametrize("digits", [2, 3, 8, 18])
@pytest.mark.parametrize("order", ["most_significant_first", "least_significant_first"])
def test_every_row_is_a_right_sum(digits, order):
    data = columns("train", digits=digits, rows=300, order=order)
    tokens, maskable = data["tokens"], data["maskable"]
    assert tokens.shape == maskable.shape == (300, 3 * digits + 3)
    assert (tokens[:, digits] == PLUS_TOKEN).all()
    assert (tokens[:, 2 * digits + 1] == EQUALS_TOKEN).all()
    assert not maskable[:, : 2 * digits + 2].any()
    assert maskable[:, 2 * digits + 2 :].all()
    answer = answer_of(tokens)[:, :: 1 if order == "most_significant_first" else -1]
    a, b = map(numbers, operands(tokens))
    assert numbers(answer) == [x + y for x, y in zip(a, b, strict=True)]
    assert np.array_equal(data["carry"], longest_carry_chain(*operands(tokens)))


def test_order_turns_the_answer_alone():
    first, last = (columns("test", rows=50, order=f"{end}_significant_first") for end in ("most", "least"))
    assert np.array_equal(first["tokens"][:, :18], last["tokens"][:, :18])
    assert np.array_equal(answer_of(first["tokens"]), answer_of(last["tokens"])[:, ::-1])


def test_every_chain_length_is_represented(rows):
    for data in rows.values():
        constructed = data["carry"][1::2]
        assert np.array_equal(constructed, np.arange(2000) % 9)
        assert (data["carry"][::2] <= 2).mean() > 0.9  # uniform pairs hardly have long ones


def test_uniform_rows_are_uniform(rows):
    for digits in operands(rows["train"]["tokens"][::2]):
        counts = np.bincount(digits.ravel(), minlength=10)
        assert abs(counts - 1600).max() < 5 * np.sqrt(1600 * 0.9)


def test_splits_share_no_pair_for_any_seed_and_argument(rows):
    train = pairs(rows["train"]["tokens"]) | pairs(columns("train", rows=4000, seed=1, carry=(0, 8))["tokens"])
    assert not train & pairs(rows["test"]["tokens"])
    small = [pairs(columns(split, digits=2, rows=4000)["tokens"]) for split in ("train", "test")]
    assert not small[0] & small[1]
    assert 0.05 < len(small[1]) / 5050 < 0.15


def test_a_seed_fixes_the_rows(rows):
    assert np.array_equal(columns("train", rows=4000)["tokens"], rows["train"]["tokens"])
    assert not np.array_equal(columns("train", rows=4000, seed=1)["tokens"], rows["train"]["tokens"])


def test_carry_chooses_lengths_evenly():
    assert Counter(columns("test", rows=300, carry=(3, 5))["carry"].tolist()) == {3: 100, 4: 100, 5: 100}
    assert set(columns("train", rows=20, digits=12, carry=(12, 12))["stratum"]) == {"10+"}


def test_strata_cover_all_lengths_without_overlap(rows):
    assert strata_names(8) == ["0-2", "3-4", "5-6", "7+"]
    assert strata_names(2) == ["0-1", "2+"]
    for digits in range(2, 19):
        bounds = [name.rstrip("+").split("-") for name in strata_names(digits)]
        covered = [n for low, *high in bounds for n in range(int(low), int((high or [low])[0]) + 1)]
        assert covered == list(range(len(covered)))
        assert len(covered) <= digits + 1
    data = rows["test"]
    for length, name in enumerate(["0-2"] * 3 + ["3-4"] * 2 + ["5-6"] * 2 + ["7+"] * 2):
        assert set(data["stratum"][data["carry"] == length]) == {name}


def test_rows_go_through_the_stream():
    data = load_addition("train", rows=40)
    check_rows(data, MASK_TOKEN, VOCAB_SIZE, shifted=True)
    assert data.cache_files == []
    assert RowStream(data).take(8).maskable.sum(dim=1).tolist() == [9] * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, "did you mean 'test'"),
        ({"split": "train", "order": "least"}, "did you mean 'least_significant_first'"),
        ({"split": "train", "digits": 1}, "2 to 18, got 1"),
        ({"split": "train", "rows": 0}, "at least 1"),
        ({"split": "train", "carry": (3, 9)}, "within 0 to 8"),
        ({"split": "train", "carry": (3, 2)}, "least, most"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_addition(**arguments)


# --- checking an answer ---


def test_an_answer_is_right_or_wrong(rows):
    tokens = rows["test"]["tokens"][:100]
    answer = answer_of(tokens)
    assert is_correct(answer, tokens).all()
    for place in range(answer.shape[1]):
        for wrong in ((answer[:, place] + 1) % 10, MASK_TOKEN, PLUS_TOKEN):
            other = answer.copy()
            other[:, place] = wrong
            assert not is_correct(other, tokens).any()


def test_several_answers_to_one_row(rows):
    row = torch.tensor(rows["test"]["tokens"][0])
    answers = answer_of(row.repeat(2, 3, 1)).copy()
    answers[1, 2, 0] += 1
    assert is_correct(torch.tensor(answers), row).tolist() == [[True, True, True], [True, True, False]]


def test_wrong_shapes_are_refused(rows):
    row = rows["test"]["tokens"][0]
    answer = answer_of(row)
    with pytest.raises(ValueError, match=r"shape \[\.\.\., 9\], got \(8,\)"):
        is_correct(answer[:8], row)
    with pytest.raises(ValueError, match="one row an answer"):
        is_correct(np.tile(answer, (3, 1)), np.tile(row, (2, 1)))
    with pytest.raises(ValueError, match="must be clean"):
        is_correct(answer, np.concatenate([row[:18], np.full(9, MASK_TOKEN)]))
    with pytest.raises(ValueError, match=r"3 D \+ 3"):
        answer_of(row[:26])
    with pytest.raises(ValueError, match="must have '\\+' at 8"):
        answer_of(row[::-1])
    with pytest.raises(ValueError, match="one shape"):
        longest_carry_chain(np.zeros(3), np.zeros(4))

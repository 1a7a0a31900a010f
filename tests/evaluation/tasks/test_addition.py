"""Addition: the answer counts as a whole, by carry length."""

import pytest
import torch

from unmask import AdditionTask, Decoding, RowStream
from unmask.config import from_json, to_json
from unmask.data.arithmetic import MASK_TOKEN, VOCAB_SIZE, longest_carry_chain, strata_names
from unmask.evaluation.tasks import wilson


def _rows(dataset):
    return RowStream(dataset).rows(torch.arange(len(dataset)))


def _task(**options):
    return AdditionTask(digits=4, puzzles=30, final_puzzles=60, **options)


@pytest.mark.parametrize("order", ["most_significant_first", "least_significant_first"])
@pytest.mark.parametrize("policy", ["confidence", "random", "right_to_left"])
def test_a_model_that_can_add_is_right_in_any_order(oracle, order, policy):
    task = _task(order=order, decoding=Decoding(policy))
    rows = _rows(task.load(30))
    found = task.start()(oracle(rows, rows.tokens, VOCAB_SIZE, MASK_TOKEN), False)
    assert found["solved"] == 1.0
    assert found["interval"] == wilson(30, 30)
    assert found["puzzles"] == len(rows) == 30
    assert found["forwards_per_token"] == 1.0
    assert set(found["strata"]) == set(strata_names(4))


def test_one_wrong_digit_is_wrong_and_counts_in_its_stratum(oracle):
    task = _task()
    data = task.load(60)
    rows, stratum = _rows(data), data["stratum"][:]
    answers, longest = rows.tokens.clone(), stratum[-1]
    for i, name in enumerate(stratum):
        if name == longest:
            answers[i, -1 - i % 5] = (answers[i, -1 - i % 5] + 1) % 10
    found = task.evaluate(oracle(rows, answers, VOCAB_SIZE, MASK_TOKEN), data)
    for name, share in found["strata"].items():
        assert share["solved"] == (0.0 if name == longest else 1.0)
        assert share["puzzles"] == stratum.count(name)


def test_rows_are_unseen_and_their_chains_as_asked():
    task = _task(carry=(3, 4), seed=1)
    tokens = torch.tensor(task.load()["tokens"][:])
    assert len(tokens) == 60
    chains = longest_carry_chain(tokens[:, :4], tokens[:, 5:9])
    assert set(chains.tolist()) == {3, 4}


def test_bad_settings_are_refused_before_training():
    with pytest.raises(ValueError, match="digits must be 2 to 18"):
        AdditionTask(digits=1).start()
    assert from_json(to_json(_task(carry=(1, 2)))) == _task(carry=(1, 2))

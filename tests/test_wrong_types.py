"""What is no model or no data set is named by every public function that is given it, with what to do instead."""

import inspect

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import unmask
from unmask import IndependentMasking, RowStream, Scores, TrainingConfig
from unmask.evaluation import likelihood
from unmask.integrations import MaskedDiffusionTrainer

PUBLIC = {
    name: getattr(unmask, name)
    for name in unmask.__all__
    if inspect.isfunction(getattr(unmask, name)) or inspect.isclass(getattr(unmask, name))
} | {"MaskedDiffusionTrainer": MaskedDiffusionTrainer, "likelihood": likelihood.likelihood}
WRONG = {"model": nn.Linear(2, 2)} | {key: [[1, 2]] for key in ("dataset", "rows", "train_dataset", "batch")}
SAID = {"model": "MaskedDiffusionLM", "batch": "TokenBatch"}
NOT_ASKED = {"MaskedDiffusionLM", "Pretrained"}  # the first is what is asked for, the second holds what was found


def places():
    """Every public function's parameter that takes a model or data."""
    for name, function in PUBLIC.items():
        if name in NOT_ASKED or hasattr(function, "__dataclass_fields__"):
            continue
        for parameter in inspect.signature(function).parameters:
            if parameter in WRONG:
                yield name, parameter


def right(parameter, build, rows, tmp_path):
    """Something that the function takes."""
    if parameter in ("dataset", "rows", "train_dataset"):
        return rows
    return {
        "model": build,
        "masking": IndependentMasking,
        "batch_size": lambda: 4,
        "out": lambda: tmp_path,
        "config": lambda: TrainingConfig(steps=1),
        "args": lambda: TrainingArguments(str(tmp_path), max_steps=1, report_to=[]),
        "batch": lambda: RowStream(rows).rows(torch.arange(2)),
        "tokenizer": lambda: None,
        "folder": lambda: tmp_path,
        "recipe": lambda: "sudoku",
    }[parameter]()


@pytest.mark.parametrize(("name", "wrong"), sorted(places()))
def test_what_is_of_another_kind_is_named(name, wrong, build, rows, tmp_path):
    function = PUBLIC[name]
    given = {
        parameter: WRONG[wrong] if parameter == wrong else right(parameter, build, rows, tmp_path)
        for parameter, about in inspect.signature(function).parameters.items()
        if parameter == wrong or (about.default is about.empty and about.kind is not about.VAR_KEYWORD)
    }
    with pytest.raises(TypeError, match=SAID.get(wrong, "expected one datasets.Dataset")):
        function(**given)


def test_the_places_are_found():
    """The control: those that are known to take a model or data are among them."""
    found = set(places())
    assert {("Trainer", "model"), ("Trainer", "dataset"), ("RowStream", "dataset"), ("generate", "batch")} <= found
    assert {("TrainingStep", "dataset"), ("add_order", "rows"), ("likelihood", "model")} <= found
    assert len(found) > 12


def test_scores_take_what_a_process_needs():
    """A process that needs none says None."""
    logits = torch.randn(2, 3, 4)
    none, some = Scores.from_logits(logits, 0, None), Scores.from_logits(logits, 0, ("margin",))
    assert none.margin is None
    assert torch.equal(none.log_confidence, some.log_confidence)
    assert some.margin is not None

"""Whatever measures a model runs it without dropout, and leaves every submodule in the mode that it was in."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

from unmask import Bernoulli, IndependentMasking, MaskedDiffusionLM, ProgressiveUnmasking, RowStream
from unmask.evaluation.exact import exact_likelihood, importance_weighted, order_likelihood
from unmask.evaluation.likelihood import likelihood
from unmask.evaluation.locality import locality
from unmask.evaluation.order import chain_order
from unmask.evaluation.tasks import SudokuTask
from unmask.evaluation.variance import Nested, compare_variance, decompose
from unmask.fitted_times import Measurement
from unmask.processes.guides import add_entropies
from unmask.processes.refit import measure_profile
from unmask.recipes import SudokuModel
from unmask.sampling import generate

PROFILE = Measurement(rates=(0.5, 1.0), rows=2, masks=1)
GRADIENTS = Measurement(rates=(0.5, 1.0), rows=2, masks=1, moment="gradient")
INDEPENDENT = IndependentMasking()
MEASURES = {
    "likelihood": likelihood,
    "exact_likelihood": exact_likelihood,
    "importance_weighted": lambda model, rows: importance_weighted(model, rows, 2),
    "order_likelihood": lambda model, rows: order_likelihood(model, rows, "confidence"),
    "locality": locality,
    "chain_order": lambda model, rows: chain_order(model, _batch(rows), ProgressiveUnmasking(stages=2)),
    "decompose": lambda model, rows: decompose(model, INDEPENDENT, rows, batch_size=2, nested=Nested(3, 2, 2)),
    "compare_variance": lambda model, rows: compare_variance(
        model, rows, {"one": INDEPENDENT}, 2, Nested(3, 2, 2), seed=0
    ),
    "measure_profile": lambda model, rows: measure_profile(model, rows, Bernoulli(), PROFILE),
    "measure_profile of gradients": lambda model, rows: measure_profile(model, rows, Bernoulli(), GRADIENTS),
    "add_entropies": add_entropies,
    "generate": lambda model, rows: generate(model, _batch(rows)),
}


def _batch(rows):
    return RowStream(rows).rows(torch.arange(len(rows)))


def _watched(model):
    """Mix the modes of the submodules; return them, and a list that collects the modes of every forward."""
    modules = list(model.modules())
    for number, module in enumerate(modules):
        module.training = number % 3 != 1
    seen = []
    for module in modules:
        module.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    return [module.training for module in modules], seen


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_modes_of_all_submodules_are_what_they_were(measure):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    model = MaskedDiffusionLM.from_config(config, 11)
    before, seen = _watched(model)
    measure(model, Dataset.from_dict({"tokens": [[1, 2, 3, row] for row in range(8)], "maskable": [[True] * 4] * 8}))
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == before


def test_tasks_too():
    torch.manual_seed(0)
    model, task = SudokuModel(layers=1, width=16, heads=2).build(), SudokuTask(puzzles=3, final_puzzles=3)
    before, seen = _watched(model)
    task.evaluate(model, task.load(3))
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == before

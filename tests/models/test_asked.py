"""What trainers ask of a Hugging Face model, a denoiser answers as the model inside it."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from unmask import IndependentMasking, MaskedDiffusionLM, RowStream

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MASK = 19
CONFIGS = {
    "tied": LlamaConfig(vocab_size=20, tie_word_embeddings=True, **SIZES),
    "untied": LlamaConfig(vocab_size=20, **SIZES),
    "bert": BertConfig(vocab_size=20, **SIZES),
}
each = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    return MaskedDiffusionLM.from_config(CONFIGS[name], MASK).double()


@pytest.fixture
def batch():
    rows = Dataset.from_dict({"tokens": [[1, 2, 3, 4, 5, 6]] * 3, "maskable": [[True] * 6] * 3})
    return IndependentMasking().start(RowStream(rows), 3).draw()


@each
def test_it_answers_as_the_model_inside(name, model):
    inside = model.hugging_face
    assert model.get_input_embeddings() is inside.get_input_embeddings()
    assert model.get_output_embeddings() is inside.get_output_embeddings() is model.head.output
    assert set(model._no_split_modules) == set(inside._no_split_modules)
    assert model.supports_gradient_checkpointing == inside.supports_gradient_checkpointing
    layers = {type(module).__name__ for module in model.modules()}
    assert "LlamaDecoderLayer" in model._no_split_modules or name == "bert"
    assert layers.intersection(model._no_split_modules)


@each
def test_tied_keys_name_weights_that_are_one(name, model):
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = model._tied_weights_keys or {}
    assert bool(tied) == (name != "untied")
    for copy, first in tied.items():
        assert parameters[copy] is parameters[first]
    assert len(parameters) - len(tied) == len(dict(model.named_parameters()))


def torn(model):
    """Give the output layer a weight of its own, as moving to another device module by module does."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone())
    return output


@pytest.mark.parametrize("name", ["tied", "bert"])
def test_weights_that_came_apart_are_tied_again(name, model):
    output = torn(model)
    assert output.weight is not model.get_input_embeddings().weight
    model.tie_weights()
    assert output.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["untied"])
def test_embeddings_can_be_set_and_are_the_ones_that_run(name, model, batch):
    before = model(batch).loss
    embeddings, output = nn.Embedding(20, 16).double(), nn.Linear(16, 20, bias=False).double()
    model.set_input_embeddings(embeddings)
    with_embeddings = model(batch).loss
    model.set_output_embeddings(output)
    assert len({loss.item() for loss in (before, with_embeddings, model(batch).loss)}) == 3
    assert model.get_input_embeddings() is embeddings
    assert model.hugging_face.get_output_embeddings() is model.get_output_embeddings() is output
    assert {id(embeddings.weight), id(output.weight)} <= {id(p) for p in model.parameters()}


@each
def test_checkpointing_of_activations_changes_no_gradient(name, model, batch):
    ran = []
    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    next(layer.children()).register_forward_hook(lambda *_: ran.append(1))

    def gradients():
        ran.clear()
        model.zero_grad()
        model(batch).loss.backward()
        return len(ran), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    runs, plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_activation_checkpointing
    again, checkpointed = gradients()
    assert (runs, again) == (1, 2)  # the layer runs once more in the backward
    for one, two in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, two)
    model.gradient_checkpointing_disable()
    assert not model.is_activation_checkpointing
    assert gradients()[0] == 1


def test_a_backbone_of_ones_own_has_an_output_layer_and_nothing_else():
    model = MaskedDiffusionLM(nn.Identity(), nn.Linear(4, 5), 4)
    assert model.get_input_embeddings() is None
    assert model.get_output_embeddings() is model.head.output
    assert (model._no_split_modules, model._tied_weights_keys) == ([], None)
    model.tie_weights()
    with pytest.raises(ValueError, match="needs a Hugging Face model"):
        model.gradient_checkpointing_enable()

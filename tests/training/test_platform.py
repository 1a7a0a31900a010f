"""Choices for the machine: the attention kernel changes speed alone, and a named one is kept."""

from __future__ import annotations

import copy
import importlib.util
import math
import shutil

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig
from transformers.modeling_outputs import BaseModelOutput

from unmask import Clipped, IndependentMasking, MaskedDiffusionLM, TrainingConfig
from unmask.training.platform import (
    COMPILE_FROM,
    FUSED_ATTENTION_FROM,
    attention_kernel,
    compile_layers,
    set_attention,
    should_compile,
)

CPU = torch.device("cpu")
_UNEQUAL = [3 + 5 * (i % 4) for i in range(8)]


def _rows(lengths: list[int]) -> Dataset:
    """Rows of so many tokens below 8, all of them maskable."""
    tokens = [[(3 * i + j) % 8 for j in range(length)] for i, length in enumerate(lengths)]
    return Dataset.from_dict({"tokens": tokens, "maskable": [[True] * length for length in lengths]})


def _used(model: MaskedDiffusionLM) -> str | None:
    assert model.config is not None
    return model.config._attn_implementation


@pytest.mark.parametrize(
    ("device", "dtype", "length", "kernel"),
    [
        ("cpu", torch.bfloat16, 81, "plain"),
        ("cpu", torch.bfloat16, FUSED_ATTENTION_FROM - 1, "plain"),
        ("cpu", torch.bfloat16, FUSED_ATTENTION_FROM, "sdpa"),
        ("cpu", None, 81, "sdpa"),
        ("cuda", torch.bfloat16, 81, "sdpa"),
        ("mps", None, 81, "sdpa"),
    ],
)
def test_plain_products_are_chosen_for_short_rows_in_bf16_on_a_cpu_alone(device, dtype, length, kernel):
    assert attention_kernel(torch.device(device), dtype, length) == kernel


@pytest.mark.parametrize("setting", ["plain", "eager", "sdpa"])
def test_a_named_kernel_is_used_whatever_the_row_length(build, setting):
    for length in (8, 2048):
        model = build()
        set_attention(model, setting, CPU, torch.bfloat16, length)
        assert _used(model) == setting


def test_auto_leaves_a_kernel_of_another_kind_alone():
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = MaskedDiffusionLM.from_config(config, 8)
    model.backbone.set_attn_implementation("flex_attention")
    set_attention(model, "auto", torch.device("cuda"), torch.bfloat16, 8)
    assert _used(model) == "flex_attention"


class _Mean(nn.Module):
    """A denoiser without attention that is no Hugging Face model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> BaseModelOutput:
        embedded = self.embedding(input_ids)
        return BaseModelOutput(last_hidden_state=embedded + embedded.mean(1, keepdim=True))


def test_a_backbone_of_another_kind_has_no_kernel_to_choose():
    model = MaskedDiffusionLM(_Mean(), nn.Linear(4, 9), 8)
    set_attention(model, "auto", CPU, torch.bfloat16, 8)
    with pytest.raises(ValueError, match="Hugging Face backbone; use attention 'auto'"):
        set_attention(model, "eager", CPU, torch.bfloat16, 8)


def test_the_trainer_trains_the_same_weights_with_either_kernel(trainer, build, weights_in):
    """Rows of unequal length, so that padding is masked; in float64."""
    found = {}
    for setting in ("auto", "plain", "eager", "sdpa"):
        run = trainer(setting, model=build(double=True), dataset=_rows(_UNEQUAL), attention=setting)
        assert _used(run.model) == ("sdpa" if setting == "auto" else setting)
        found[setting] = weights_in(run.train())
    for name, weight in found["eager"].items():
        assert torch.equal(found["auto"][name], found["sdpa"][name])
        torch.testing.assert_close(found["sdpa"][name], weight, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["plain"][name], weight, rtol=1e-9, atol=1e-9)


def test_a_kernel_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"attention must be 'auto' or .* 'flash_attention_2', got 'flash'"):
        TrainingConfig(attention="flash")  # type: ignore[arg-type]


def test_the_trainer_takes_plain_products_for_short_rows_in_bf16(trainer):
    assert _used(trainer(precision="bf16").model) == "plain"


def test_a_backbone_that_takes_no_kernel_from_outside_keeps_its_own():
    config = Gemma2Config(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8,
        num_key_value_heads=1, final_logit_softcapping=None,
    )  # fmt: skip
    model = MaskedDiffusionLM.from_config(config, 8)
    before = _used(model)
    set_attention(model, "auto", CPU, torch.bfloat16, 8)
    assert _used(model) == before
    with pytest.raises(ValueError, match="Gemma2Model does not take attention 'plain'; use attention 'eager'"):
        set_attention(model, "plain", CPU, torch.bfloat16, 8)


def test_a_saved_model_does_not_remember_the_kernel(build, tmp_path):
    """Whoever opens the folder without this library does not know ours."""
    model = build()
    set_attention(model, "plain", CPU, torch.bfloat16, 8)
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_compile_is_refused_where_it_cannot_work_before_anything_is_trained(build, monkeypatch):
    with pytest.raises(ValueError, match="_Mean has no list of layers to compile"):
        compile_layers(MaskedDiffusionLM(_Mean(), nn.Linear(4, 9), 8), CPU, dynamic=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs the C\\+\\+ compiler no-such-compiler"):
        compile_layers(build(), CPU, dynamic=False)


def test_a_refusal_to_compile_leaves_the_run_that_is_there(trainer, monkeypatch):
    first = trainer()
    saved = first.train()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs the C\\+\\+ compiler"):
        trainer(compile=True).train(overwrite=True)
    assert saved.is_dir()


def test_layers_are_compiled_where_a_run_is_long_enough_to_gain_by_it(build, monkeypatch):
    monkeypatch.setenv("CXX", "true")  # some program that is there
    model = build(n_layer=2)
    weights = sum(p.numel() for p in model.backbone.get_submodule("h").parameters())
    enough = math.ceil(torch.get_num_threads() * COMPILE_FROM["cpu"] / (6 * weights))
    bf16 = torch.bfloat16
    assert should_compile(None, model, CPU, bf16, enough)
    assert not should_compile(None, model, CPU, bf16, enough - 1)
    assert not should_compile(None, model, CPU, None, enough)
    assert not should_compile(None, model, torch.device("mps"), bf16, enough)
    assert not should_compile(None, MaskedDiffusionLM(_Mean(), nn.Linear(4, 9), 8), CPU, bf16, 1 << 60)
    assert not should_compile(False, model, CPU, bf16, enough)
    assert should_compile(True, model, CPU, None, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not should_compile(None, model, CPU, bf16, enough)


def test_the_trainer_counts_all_tokens_of_the_run(trainer, monkeypatch):
    """Six steps of eight rows of 81, and one layer of the model: the bound is set to just that."""
    monkeypatch.setenv("CXX", "true")
    weights = sum(p.numel() for p in trainer().model.backbone.get_submodule("h").parameters())
    for more, expected in ((0, True), (1, False)):
        monkeypatch.setitem(COMPILE_FROM, "cpu", 6 * weights * 6 * 8 * 81 + more)
        assert trainer(precision="bf16").compiled is expected
        assert not trainer(precision="bf16", compile=False).compiled


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [_UNEQUAL, [7] * 8], ids=["unequal", "equal"])
def test_compiled_layers_train_the_same_weights(lengths, trainer, build, weights_in):
    """In float64, with many shapes or with one, some rows of which have no mask; evaluations run uncompiled."""
    found = {}
    for compiled in (False, True):
        run = trainer(
            str(compiled), model=build(double=True, n_layer=2), masking=IndependentMasking(Clipped(0.0, 0.2)),
            dataset=_rows(lengths), compile=compiled, micro_batch_size=3,
        )  # fmt: skip
        found[compiled] = weights_in(run.train())
        assert all(layer._compiled_call_impl is None for layer in run.model.backbone.get_submodule("h"))
    assert found[True].keys() == found[False].keys()
    for name, weight in found[True].items():
        torch.testing.assert_close(weight, found[False][name], rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_trainer_takes_sdpa(trainer):
    assert _used(trainer().model) == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [_UNEQUAL, [7] * 8], ids=["unequal", "equal"])
def test_a_compiled_run_resumes_to_the_same_bits(lengths, trainer, build, weights_in):
    """Other shapes came before the checkpoint than after it, and must not matter."""
    shared = {"dataset": _rows(lengths), "compile": True, "checkpoint_every": 3, "masking": IndependentMasking()}
    whole = trainer("whole", model=build(n_layer=2), **shared)
    expected = weights_in(whole.train())
    shutil.copytree(whole.out, whole.out.with_name("part"))
    shutil.rmtree(whole.out.with_name("part") / "checkpoints" / "step-00000006")
    torch.compiler.reset()  # as in a new process
    found = weights_in(trainer("part", model=build(n_layer=2), **shared).train(resume=True))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


LLAMA = LlamaConfig(vocab_size=20, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_kernels_of_gpus_are_refused_in_words_where_they_cannot_run(kernel):
    model = MaskedDiffusionLM.from_config(LLAMA, 19)
    with pytest.raises(ValueError, match=f"'{kernel}' runs on CUDA alone.*use attention 'sdpa'"):
        set_attention(model, kernel, CPU, None, 8)
    cuda = torch.device("cuda")
    if kernel.startswith("flash"):
        with pytest.raises(ValueError, match="has no fp32"):
            set_attention(model, kernel, cuda, None, 8)
        if importlib.util.find_spec("flash_attn") is None:
            with pytest.raises(ValueError, match=r"(?i)flash.*installed"):
                set_attention(model, kernel, cuda, torch.bfloat16, 8)
    else:
        set_attention(model, kernel, cuda, None, 8)
        assert _used(model) == kernel


def test_a_model_that_names_a_gpus_kernel_is_wrapped_on_a_cpu_and_keeps_it():
    config = copy.deepcopy(LLAMA)
    config._attn_implementation = "flex_attention"
    model = MaskedDiffusionLM.from_config(config, 19)
    assert _used(model) == "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention' runs on CUDA alone"):
        set_attention(model, "auto", CPU, None, 8)
    set_attention(model, "sdpa", CPU, None, 8)
    assert _used(model) == "sdpa"

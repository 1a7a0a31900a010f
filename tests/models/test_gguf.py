"""A quantized file is unpacked when it is loaded, so that it can be trained and saved."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from unmask import from_pretrained, save_pretrained
from unmask.evaluation.generative import judge_texts
from unmask.models.pretrained import unpacked

gguf = pytest.importorskip("gguf")
WORDS = ["<|endoftext|>", "<unk>", *(chr(c) for c in range(33, 127)), "ab"]


@pytest.fixture
def quantized(tmp_path):
    """A folder with a small Llama as one .gguf file of 8-bit blocks, and that model's weights."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    weights = LlamaForCausalLM(config).state_dict()
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(WORDS) - 2))
    writer.add_token_merges(["a b"])
    for name in ("bos", "eos"):
        getattr(writer, f"add_{name}_token_id")(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in weights.items():
        values, kind = weight.numpy(), gguf.GGMLQuantizationType.F32
        if values.ndim == 2:
            if "q_proj" in name or "k_proj" in name:  # the file's order of a head's rotary halves
                values = values.reshape(1, 2, 16, 32).swapaxes(1, 2).reshape(values.shape)
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quantize(values.astype(np.float32), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path, weights


def test_a_quantized_file_is_trained_and_saved_like_any_other(quantized, tmp_path):
    folder, weights = quantized
    model, tokenizer = from_pretrained(folder, gguf_file="tiny.gguf", mask_token="<|mask|>")
    found = model.hugging_face.state_dict()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, weight in weights.items():  # but for 8 bits
        torch.testing.assert_close(found[name][: len(weight)], weight, atol=0.01 * float(weight.abs().max()), rtol=0)
    save_pretrained(model, tokenizer, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, found[name]), name
    assert all(p.requires_grad for p in model.parameters())


def test_a_quantized_judge_scores_as_its_unpacked_copy(quantized, tmp_path):
    folder, _ = quantized
    place = {"gguf_file": "tiny.gguf"}
    AutoModelForCausalLM.from_pretrained(folder, **unpacked(place)).save_pretrained(tmp_path / "copy")
    AutoTokenizer.from_pretrained(folder, **place).save_pretrained(tmp_path / "copy")
    package = tmp_path / "tiny_judge"
    package.mkdir()
    (package / "__init__.py").touch()
    (folder / "tiny.gguf").rename(package / "tiny.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        packed, name = judge_texts(["abab", "hello"], "package:tiny_judge")
    plain, same = judge_texts(["abab", "hello"], tmp_path / "copy")
    assert name == same
    assert torch.equal(packed.nats, plain.nats)

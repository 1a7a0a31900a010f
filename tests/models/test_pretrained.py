import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from unmask import LoRA, MaskedDiffusionLM, from_pretrained, save_pretrained
from unmask.models.pretrained import load_adapted

WORDS = ["<pad>", "<bos>", "<eos>", "<free>", *"abcdefghijklmnop"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
BODIES = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **SIZES)),
    "smollm2": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, tie_word_embeddings=True, **SIZES)),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, num_key_value_heads=1, head_dim=8, **SIZES)),
    "bert": lambda v: BertForMaskedLM(BertConfig(vocab_size=v, **SIZES)),
    "modernbert": lambda v: ModernBertForMaskedLM(ModernBertConfig(vocab_size=v, **SIZES, **SPECIAL)),
}
CAUSAL = ("llama", "smollm2", "qwen3")
each = pytest.mark.parametrize("body", BODIES)


@pytest.fixture
def folder(tmp_path):
    """Write a pretrained model of the given body, as somebody else would have."""

    def write(body, rows=20, mask_token=None):
        torch.manual_seed(0)
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
        if mask_token:
            special["mask_token"] = mask_token
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / body)
        BODIES[body](rows).save_pretrained(tmp_path / body)
        return tmp_path / body

    return write


def batch(model, count=3, length=7):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 20, (count, length), generator=generator)
    masked = torch.rand(count, length, generator=generator) < 0.5
    masked[:, 0], masked[:, 1] = False, True
    return tokens.masked_fill(masked, model.mask_token_id), torch.ones_like(masked), masked


@each
def test_a_model_comes_in_with_a_new_mask_token_and_goes_out_exactly(body, folder, tmp_path):
    model, tokenizer = from_pretrained(folder(body))
    assert model.shifted == (body in CAUSAL)
    assert tokenizer.mask_token == "<|mask|>"
    assert model.mask_token_id == tokenizer.mask_token_id == len(WORDS)
    assert model.head.vocab_size == len(WORDS) + 1
    save_pretrained(model, tokenizer, tmp_path / "out", {"data": "letters"})
    again, same = from_pretrained(tmp_path / "out")
    assert (again.shifted, again.mask_token_id) == (model.shifted, model.mask_token_id)
    assert same.get_vocab() == tokenizer.get_vocab()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert "letters" in (tmp_path / "out" / "README.md").read_text()


@each
def test_the_folder_opens_with_transformers_alone_and_says_the_same(body, folder, tmp_path):
    model, tokenizer = from_pretrained(folder(body))
    save_pretrained(model, tokenizer, tmp_path / "out")
    kind = AutoModelForCausalLM if body in CAUSAL else AutoModelForMaskedLM
    theirs, words = kind.from_pretrained(tmp_path / "out").eval(), AutoTokenizer.from_pretrained(tmp_path / "out")
    noisy, attention, masked = batch(model)
    logits = theirs(input_ids=noisy, attention_mask=attention).logits
    if model.shifted:
        logits = logits.roll(1, 1)
    logits[..., words.mask_token_id] = -torch.inf
    torch.testing.assert_close(model.eval().predict(noisy, attention, masked), logits[masked], rtol=1e-4, atol=1e-5)


@each
def test_old_tokens_keep_their_embeddings_when_the_mask_token_is_added(body, folder):
    path = folder(body)
    before = BODIES[body](len(WORDS)).from_pretrained(path).get_input_embeddings().weight
    model, _ = from_pretrained(path)
    after = model.hugging_face.get_input_embeddings().weight
    torch.testing.assert_close(after[: len(WORDS)], before, rtol=0, atol=0)
    assert after[len(WORDS)].abs().sum() > 0


def test_tied_embeddings_stay_tied(folder):
    model, _ = from_pretrained(folder("smollm2"))
    assert model.hugging_face.get_input_embeddings().weight is model.head.output.weight


def test_a_free_token_serves_as_mask_and_nothing_is_resized(folder):
    model, tokenizer = from_pretrained(folder("llama"), mask_token="<free>")
    assert model.mask_token_id == WORDS.index("<free>") == tokenizer.mask_token_id
    assert model.head.vocab_size == len(WORDS)


def test_rows_that_a_model_has_to_spare_are_used_before_it_is_resized(folder):
    model, _ = from_pretrained(folder("llama", rows=32))
    assert (model.mask_token_id, model.head.vocab_size) == (len(WORDS), 32)


@pytest.mark.parametrize("body", ["llama", "smollm2", "bert"])
@pytest.mark.parametrize("rows", [len(WORDS), 32])
def test_a_new_mask_token_is_embedded_as_tokens_are_wherever_its_row_comes_from(body, rows, folder):
    """A row to spare may hold zeros, which a norm cannot read, or anything else that was never trained."""
    path = folder(body, rows=rows)
    hf = BODIES[body](rows).from_pretrained(path)
    with torch.no_grad():
        hf.get_input_embeddings().weight[len(WORDS) :] = torch.tensor([0.0, 100.0] * 8)[:, None][: rows - len(WORDS)]
    hf.save_pretrained(path)
    model, _ = from_pretrained(path)
    table = model.get_input_embeddings().weight
    known, new = table[: len(WORDS)], table[model.mask_token_id]
    torch.testing.assert_close(new, known.mean(0), rtol=0, atol=1e-7)
    before = hf.get_input_embeddings().weight
    torch.testing.assert_close(known, before[: len(WORDS)], rtol=0, atol=0)
    torch.testing.assert_close(table[len(WORDS) + 1 :], before[len(WORDS) + 1 :], rtol=0, atol=0)


@each
def test_a_folder_is_one_model_whatever_was_drawn_before(body, folder):
    """Two processes, or two ranks, that load it would else train and measure different models."""
    path, states = folder(body), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(from_pretrained(path).model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize("mask_token", [None, "<free>"])
def test_a_mask_token_that_is_there_keeps_its_embedding(mask_token, folder):
    path = folder("bert", rows=32, mask_token=None if mask_token else "<free>")
    model, tokenizer = from_pretrained(path, mask_token=mask_token)
    before = BODIES["bert"](32).from_pretrained(path).get_input_embeddings().weight
    assert tokenizer.mask_token == "<free>"
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_mask_token_of_the_model_that_the_tokenizer_lacks_is_not_replaced_unasked(folder):
    path = folder("llama", rows=32)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"mask_token_id": 27}))
    with pytest.raises(ValueError, match=r"config.json names the mask token 27, .*mask_token="):
        from_pretrained(path)
    assert from_pretrained(path, mask_token="<|mask|>").model.mask_token_id == len(WORDS)


def test_a_masked_model_keeps_its_own_mask_token(folder):
    model, tokenizer = from_pretrained(folder("bert", mask_token="<free>"))
    assert model.mask_token_id == tokenizer.mask_token_id == WORDS.index("<free>")


@pytest.mark.parametrize("load", [from_pretrained, MaskedDiffusionLM.from_pretrained])
def test_the_folder_of_a_run_says_where_its_model_lies(load, tmp_path):
    for step in (8, 16):
        (tmp_path / f"checkpoints/step-{step:08}/model").mkdir(parents=True)
        (tmp_path / f"checkpoints/step-{step:08}/model/config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    last = tmp_path / "checkpoints/step-00000016"
    for folder in (tmp_path, last):
        with pytest.raises(ValueError, match=f"folder of a run or checkpoint, and its model lies in {last}/model"):
            load(folder)


def test_the_read_out_can_be_chosen(folder):
    assert not from_pretrained(folder("llama"), shifted=False).model.shifted


def test_a_tokenizer_of_another_model_is_refused(folder):
    told = "tokenizer has 20 tokens with ids up to 19, the model embeds 7: they do not belong together"
    with pytest.raises(ValueError, match=told):
        from_pretrained(folder("llama", rows=7))


def test_so_it_is_where_its_ids_leave_gaps(folder, monkeypatch):
    """As many tokens as the model has rows, and one of them behind the last row."""
    monkeypatch.setitem(globals(), "WORDS", [*WORDS[:-1], *["a"] * 5, "far"])  # the later of equal words counts
    with pytest.raises(ValueError, match="tokenizer has 20 tokens with ids up to 24, the model embeds 20"):
        from_pretrained(folder("llama", rows=20))


@pytest.mark.parametrize("known", [False, True], ids=["new mask", "mask known"])
def test_added_tokens_behind_the_last_row_get_rows_too(folder, known):
    """The tokenizer of Gemma 3 1B has a token for images that its model does not embed."""
    place = folder("llama", mask_token="<free>" if known else None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(place)
    model, read = from_pretrained(place)
    assert read.convert_tokens_to_ids("<image>") == 20
    assert model.head.vocab_size == (21 if known else 22)
    assert model.mask_token_id == (3 if known else 21)


def test_a_causal_model_that_only_its_architecture_names_predicts_the_next_position(folder, monkeypatch):
    """Models with images are in no list of causal language models, and are none the less causal."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {"vocab_size": 20, "num_key_value_heads": 2, "rope_parameters": rope, **SIZES}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    config = Qwen2VLConfig(text_config=text, vision_config=vision)
    monkeypatch.setitem(BODIES, "qwen2_vl", lambda _: Qwen2VLForConditionalGeneration(config))
    assert from_pretrained(folder("qwen2_vl")).model.shifted


def test_adapters_open_again_on_a_model_whose_vocabulary_is_that_of_its_text_part(folder, monkeypatch, tmp_path):
    pytest.importorskip("peft")
    text = {"vocab_size": 20, "num_key_value_heads": 1, "head_dim": 8, **SIZES}
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=19, mm_tokens_per_image=4)
    monkeypatch.setitem(BODIES, "gemma3", lambda _: Gemma3ForConditionalGeneration(config))
    model, _ = from_pretrained(folder("gemma3"), lora=LoRA(rank=2))
    model.save_pretrained(tmp_path / "adapters")
    again = load_adapted(tmp_path / "adapters")
    assert again.head.vocab_size == model.head.vocab_size == 21
    rows = batch(model)
    torch.testing.assert_close(again.eval().predict(*rows), model.eval().predict(*rows))


def test_a_token_that_texts_hold_cannot_be_the_mask(folder):
    with pytest.raises(ValueError, match="name a free one"):
        from_pretrained(folder("llama"), mask_token="<eos>")


def test_an_unknown_architecture_gets_a_message_that_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sedd", "architectures": ["SEDD"]}')
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        from_pretrained(tmp_path)


def test_bare_weights_get_a_message_that_says_what_to_do(tmp_path):
    BODIES["llama"](20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"MaskedDiffusionLM\.from_hf"):
        from_pretrained(tmp_path)


def test_pickled_weights_are_read_only_if_they_are_asked_for(folder):
    name = folder("llama")
    weights = load_file(name / "model.safetensors")
    torch.save(weights, name / "pytorch_model.bin")
    (name / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"nothing is unpickled unasked: convert them, or pass use_safetensors=False"
    ):
        from_pretrained(name)
    model = from_pretrained(name, use_safetensors=False).model
    assert torch.equal(model.backbone.norm.weight, weights["model.norm.weight"])


def test_saving_with_another_tokenizer_is_refused(folder, tmp_path):
    model, tokenizer = from_pretrained(folder("llama"))
    tokenizer.add_special_tokens({"mask_token": "<free>"})
    with pytest.raises(ValueError, match="mask token"):
        save_pretrained(model, tokenizer, tmp_path / "out")


def test_half_precision_weights_are_trained_in_single_precision_unless_asked(folder):
    path = folder("llama")
    AutoModelForCausalLM.from_pretrained(path).bfloat16().save_pretrained(path)
    assert {p.dtype for p in from_pretrained(path).model.parameters()} == {torch.float32}
    assert {p.dtype for p in from_pretrained(path, dtype="bfloat16").model.parameters()} == {torch.bfloat16}

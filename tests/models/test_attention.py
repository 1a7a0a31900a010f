"""Blocks through real backbones: who sees whom, one forward against one for each block, and autoregression."""

import itertools
from functools import cache

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    EsmConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
    Qwen3NextConfig,
    RobertaConfig,
)

from unmask import ELBO, Blockwise, ExactCount, IndependentMasking, MaskedDiffusionLM, RowMean, RowStream
from unmask.models.attention import BlockLayout

V, MASK, L = 23, 22, 9
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "qwen3 sliding": lambda: Qwen3Config(
        **SIZES, num_key_value_heads=1, head_dim=8, use_sliding_window=True, sliding_window=2, max_window_layers=1
    ),
    "mistral sliding": lambda: MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=2),
    "gpt2": lambda: GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "bert": lambda: BertConfig(**SIZES),
    "modernbert": lambda: ModernBertConfig(**SIZES, **SPECIAL, local_attention=4),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=64),
}
GLOBAL = [name for name in CONFIGS if "sliding" not in name and name != "modernbert"]
each = pytest.mark.parametrize("name", CONFIGS)
PRECISION = {"sdpa": torch.float64, "eager": torch.float32, "plain": torch.float64}
each_kernel = pytest.mark.parametrize("kernel", PRECISION)


@cache
def make(name, kernel="sdpa", shifted=False):
    """Build a tiny model with weights large enough for every dependence to show; leave it as it is.

    In float64, but for the eager kernel: the library's softmax is fp32 there, where a float64 mask overflows.
    """
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.initializer_range = 0.5
    config._attn_implementation = kernel
    return MaskedDiffusionLM.from_config(config, MASK, shifted).to(PRECISION[kernel]).eval()


def rows(seed=0):
    """Three clean rows of which the second is short, which are real, and what is masked of them."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, MASK, (3, L), generator=generator)
    real = torch.ones(3, L, dtype=torch.bool)
    real[1, 6:] = False
    masked = (torch.rand(3, L, generator=generator) < 0.5) & real
    masked[:, 0] = False
    return clean, real, masked


def blocks_of(size, count=3):
    return (torch.arange(L) // size).expand(count, -1)


def one_forward_a_block(model, clean, real, masked, block):
    """The plain reading of block diffusion: the clean prefix, the noisy block, nothing after it."""
    found = None
    for b in range(int(block.max()) + 1):
        here = block[0] == b
        end = int(here.nonzero().max()) + 1
        prefix = torch.where(block < b, clean, clean.masked_fill(masked, MASK))[:, :end]
        hidden = model.hidden(prefix, real[:, :end], block[:, :end])
        found = hidden.new_zeros(*clean.shape, hidden.shape[-1]) if found is None else found
        found[:, here] = hidden[:, here[:end]]
    return found


@each
@each_kernel
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [1, 4, L])
def test_one_forward_for_all_blocks_equals_one_for_each(name, kernel, shifted, size):
    model, (clean, real, masked), block = make(name, kernel, shifted), rows(), blocks_of(size)
    masked[0, :5] = False  # a prompt, whose noisy copy nobody needs
    with torch.no_grad():
        together = model.hidden(clean.masked_fill(masked, MASK), real, block, clean)
        apart = one_forward_a_block(model, clean, real, masked, block)
    torch.testing.assert_close(together[masked], apart[masked], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_block_sees_itself_and_the_clean_blocks_before_it_and_nothing_else(name, shifted, size):
    """Change one token at a time: the prediction moves exactly where it may. The answer does not leak."""
    model, (clean, real, masked), block = make(name, shifted=shifted), rows(1), blocks_of(size)
    masked[0, [2, 3, 7]], masked[0, 6] = True, False
    clean, real, masked, block = clean[:1], real[:1], masked[:1], block[:1]

    def predict(tokens):
        with torch.no_grad():
            return model.hidden(tokens.masked_fill(masked, MASK), real, block, tokens)[0]

    base = predict(clean)
    for changed in range(L):
        other = clean.clone()
        other[0, changed] = 3 + (clean[0, changed] - 2) % 19
        moved = (predict(other) - base).abs().amax(-1)
        for i in masked[0].nonzero()[:, 0].tolist():
            before = block[0, changed] < block[0, i]
            seen = bool(before | (block[0, changed] == block[0, i]) & ~masked[0, changed])
            # One token a block, shifted: position i is read from a state that saw all before it, and not itself.
            assert bool(moved[i] > 1e-9) == seen, (changed, i)


@each
@each_kernel
@pytest.mark.parametrize("shifted", [False, True])
def test_padding_does_not_leak(name, kernel, shifted):
    model, (clean, real, masked), block = make(name, kernel, shifted), rows(), blocks_of(2)
    noisy = clean.masked_fill(masked, MASK)
    with torch.no_grad():
        alone = model.hidden(noisy[1:2, :6], real[1:2, :6], block[1:2, :6], clean[1:2, :6])
        for filling in (0, 7, MASK):
            a, b = (x.masked_fill(~real, filling) for x in (noisy, clean))
            found = model.hidden(a, real, block, b)[1:2, :6]
            torch.testing.assert_close(found[masked[1:2, :6]], alone[masked[1:2, :6]], atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("shifted", [False, True])
def test_one_block_is_no_blocks_to_the_last_bit(name, shifted):
    model, (clean, real, masked) = make(name, shifted=shifted), rows()
    noisy = clean.masked_fill(masked, MASK)
    with torch.no_grad():
        plain = model.hidden(noisy, real)
        assert torch.equal(model.hidden(noisy, real, blocks_of(L), clean), plain)
        assert torch.equal(
            model.predict(noisy, real, masked), model.predict(noisy, real, masked, torch.zeros_like(clean))
        )
        # The layout with its own mask gives the same, windows of sliding layers included.
        laid_out = model.hidden(noisy, real, blocks_of(L) + 1)
    torch.testing.assert_close(laid_out[real], plain[real], atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("shifted", [False, True])
def test_generation_and_training_predict_the_same(name, shifted):
    """A block decoded after a known prefix, with masks after it, has the confidences of the training pass."""
    model, (clean, real, _), block = make(name, shifted=shifted), rows(2), blocks_of(3)
    masked = (block == 1) & real
    trained = model.hidden(clean.masked_fill(masked, MASK), real, block, clean)
    rest = (block >= 1) & real
    decoded = model.predict(clean.masked_fill(rest, MASK), real, masked, block)
    expected = model.head.logits(trained[masked], MASK)
    torch.testing.assert_close(decoded, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "shifted", "prompt", "expected"),
    [
        (L, False, 0, [(True, range(L))]),
        (1, True, 1, [(False, range(L - 1))]),
        (3, False, 0, [(True, range(L)), (False, range(6))]),
        (3, True, 0, [(True, range(L)), (False, range(6))]),
        (3, False, 6, [(True, range(6, L)), (False, range(6))]),
        (3, False, 4, [(True, range(3, L)), (False, range(6))]),
    ],
)
def test_only_what_a_prediction_needs_is_run(size, shifted, prompt, expected):
    masked = (torch.arange(L) >= max(prompt, int(shifted))).expand(2, -1)
    predictor = (torch.arange(L) - int(shifted)).clamp(min=0)
    layout = BlockLayout.double(blocks_of(size, 2), torch.ones(2, L, dtype=torch.bool), predictor, masked)
    run = [(kind, position) for kind, positions in expected for position in positions]
    assert list(zip(layout.noisy.tolist(), layout.position.tolist(), strict=True)) == run


def test_the_mask_is_that_of_the_definition():
    """Dense and as flex attention evaluates it, token pair by token pair."""
    block, real = blocks_of(2, 2), torch.ones(2, L, dtype=torch.bool)
    real[1, 5:] = False
    layout = BlockLayout.double(block, real, torch.arange(L), real)
    dense = layout.visible()
    for row, q, k in itertools.product(range(2), range(len(layout.position)), range(len(layout.position))):
        same, earlier = layout.block[row, q] == layout.block[row, k], layout.block[row, k] < layout.block[row, q]
        rule = {
            (True, True): same,
            (True, False): earlier,
            (False, True): torch.tensor(False),
            (False, False): same | earlier,
        }[bool(layout.noisy[q]), bool(layout.noisy[k])]
        assert bool(dense[row, q, k]) == (bool(rule & layout.real[row, k]) or q == k)
    model = make.__wrapped__("llama")
    model.backbone.config._attn_implementation = "flex_attention"
    flex = layout.attention_mask(model.backbone)
    every = [torch.arange(n) for n in (2, 2 * L - 1, 2 * L - 1)]
    size = len(layout.position)
    pairs = torch.stack(torch.meshgrid(every[0], torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    seen = flex.mask_mod(pairs[0], torch.tensor(0), pairs[1], pairs[2])
    assert torch.equal(seen.view(2, size, size), dense)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention is compiled for CUDA")
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_flex_attention_gives_what_the_dense_mask_gives(shifted, size):
    clean, real, masked = (x.cuda() for x in rows())
    block, found = blocks_of(size).cuda(), []
    for kernel in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES | {"hidden_size": 64, "num_attention_heads": 2}, initializer_range=0.2)
        config._attn_implementation = kernel
        model = MaskedDiffusionLM.from_config(config, MASK, shifted).cuda()
        hidden = model.hidden(clean.masked_fill(masked, MASK), real, block, clean)[masked]
        hidden.square().sum().backward()
        found.append((hidden.detach(), model.backbone.layers[0].self_attn.q_proj.weight.grad))
    for dense, flex in zip(*found, strict=True):
        torch.testing.assert_close(flex, dense, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "kernel", "message"),
    [
        (LlamaConfig(**SIZES), "flash_attention_2", "takes no mask"),
        (BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2), "eager", "no position_ids"),
        (FalconConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True), "eager",
         "position_ids"),
        (Qwen3NextConfig(**SIZES | {"num_hidden_layers": 4}, num_key_value_heads=1, head_dim=8, num_experts=2,
                         num_experts_per_tok=1, moe_intermediate_size=8),
         "eager", "linear_attention"),
    ],
    ids=["flash", "bloom", "alibi", "linear"],
)  # fmt: skip
def test_what_cannot_work_with_blocks_is_refused(config, kernel, message):
    model = MaskedDiffusionLM.from_config(config, MASK)
    model.backbone.config._attn_implementation = kernel
    clean, real, masked = rows()
    with pytest.raises(ValueError, match=message):
        model.hidden(clean.masked_fill(masked, MASK), real, blocks_of(2), clean)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (MPNetConfig(**SIZES, pad_token_id=1), {"blocks": "off by"}),  # counts by place, not by number
        (EsmConfig(**SIZES, pad_token_id=1, mask_token_id=MASK, token_dropout=True, position_embedding_type="rotary"),
         {"blocks": "does not run", "documents": "does not run"}),
        (RobertaConfig(**SIZES, pad_token_id=1), {}),
    ],
    ids=["mpnet", "esm", "roberta"],
)  # fmt: skip
def test_a_layout_that_a_model_runs_otherwise_than_it_means_is_refused(config, refused):
    """Each is tried when the model is wrapped; plain rows are not touched by that."""
    torch.manual_seed(0)
    config.initializer_range = 0.5
    model = MaskedDiffusionLM.from_config(config, MASK)
    clean, real, masked = rows()
    noisy = clean.masked_fill(masked, MASK)
    model.hidden(noisy, real)
    for use, told in (("blocks", {"block": blocks_of(2), "clean": clean}), ("documents", {"document": blocks_of(4)})):
        if use in refused:
            with pytest.raises(ValueError, match=f"cannot be used with {use}.*{refused[use]}"):
                model.hidden(noisy, real, **told)
        else:
            model.hidden(noisy, real, **told)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig])
@pytest.mark.parametrize("window", [2, 40])
def test_a_window_that_a_config_names_and_layers_do_not_keep_to_is_told(kind, window):
    """Masks of our own would have it, however long rows are when it is noticed; what keeps to it is as it was."""
    torch.manual_seed(0)
    config = kind(**SIZES, num_key_value_heads=1, initializer_range=0.5)
    config.sliding_window = window
    model = MaskedDiffusionLM.from_config(config, MASK)
    assert model.backbone.config.sliding_window == window
    clean, real, masked = rows()
    for use, told in (("blocks", {"block": blocks_of(2), "clean": clean}), ("documents", {"document": blocks_of(4)})):
        if kind is MistralConfig:
            model.hidden(clean.masked_fill(masked, MASK), real, **told)
            continue
        with pytest.raises(ValueError, match=rf"with {use}.* the sliding_window={window} .*set that to"):
            model.hidden(clean.masked_fill(masked, MASK), real, **told)
    config.sliding_window = None
    assert MaskedDiffusionLM.from_config(config, MASK).unfit == {}


def test_blocks_out_of_order_are_refused():
    clean, real, masked = rows()
    with pytest.raises(ValueError, match="must not decrease"):
        make("llama").hidden(clean.masked_fill(masked, MASK), real, blocks_of(2).flip(1), clean)


# --- autoregression is a block size ---


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@each_kernel
def test_blocks_of_one_token_read_to_the_left_are_the_library_models_causal_loss(name, kernel, dataset_of):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.initializer_range, config._attn_implementation = 0.5, kernel
    library = AutoModelForCausalLM.from_config(config).eval()
    data = dataset_of([8, 8, 8, 8]).map(lambda row: {"tokens": [3 + (7 * t) % 19 for t in row["tokens"]]})
    batch = Blockwise(IndependentMasking(mask=ExactCount()), 1).start(RowStream(data), 4).draw()
    with torch.no_grad():
        output = library(input_ids=batch.clean.tokens, labels=batch.clean.tokens)
        # The library's model may predict the mask token, ours never does: take that out of its normaliser.
        ours = output.logits.index_fill(-1, torch.tensor(MASK), -torch.inf)
        surplus = (output.logits.logsumexp(-1) - ours.logsumexp(-1))[:, :-1].mean()
    model = MaskedDiffusionLM.from_hf(library, MASK, shifted=True)
    for objective in (RowMean(), ELBO()):
        loss = model(batch, objective.weights(batch) / objective.normaliser(batch).float()).loss.detach()
        assert float(loss) == pytest.approx(float(output.loss - surplus), abs=1e-5)

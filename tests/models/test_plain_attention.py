"""Attention by plain products: torch's own result and gradients, and what it cannot do is refused."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

from unmask.models.attention import _Products, plain_attention

SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_are_torchs_attention_with_its_gradients(groups, masked):
    """In float64; padding that sees nothing gives finite gradients too."""
    generator = torch.Generator().manual_seed(groups)
    shape = (2, 4, 7, 8)
    query = torch.randn(shape, dtype=torch.float64, generator=generator)
    key, value = torch.randn((2, 2, groups, 7, 8), dtype=torch.float64, generator=generator)
    sees = None
    if masked:
        sees = torch.rand((2, 1, 7, 7), generator=generator) < 0.6
        sees |= torch.eye(7, dtype=torch.bool)
    upstream = torch.randn((2, 7, 4, 8), dtype=torch.float64, generator=generator)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    mine, weights = plain_attention(nn.Identity(), query, key, value, sees)
    full = scaled_dot_product_attention(query, key, value, sees, enable_gqa=True).transpose(1, 2)
    assert weights is None
    assert mine.is_contiguous()  # layers may view it as [B, L, H · d], as they do with the library's own
    torch.testing.assert_close(mine, full)
    for got, wanted in zip(
        torch.autograd.grad(mine, leaves, upstream), torch.autograd.grad(full, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    blind = torch.zeros(2, 1, 7, 7, dtype=torch.bool)
    lost, _ = plain_attention(nn.Identity(), query, key, value, blind)
    assert all(g.isfinite().all() for g in torch.autograd.grad(lost, leaves, upstream))


def test_the_gradient_of_the_keys_is_laid_out_as_the_keys_are_and_can_be_differentiated_again():
    query, key = torch.randn((2, 1, 2, 3, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = (query.requires_grad_(), key.requires_grad_())
    (gradient,) = torch.autograd.grad(_Products.apply(*leaves).square().sum(), key)
    assert gradient.is_contiguous()
    (others,) = torch.autograd.grad((query @ key.transpose(2, 3)).square().sum(), key)
    assert not others.is_contiguous()  # or the function has become needless
    assert torch.autograd.gradgradcheck(_Products.apply, leaves)


def test_plain_products_in_half_precision_are_as_near_to_exact_as_the_librarys_own():
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        query, key, value = torch.randn((3, 2, 4, 33, 16), dtype=torch.float64, generator=generator)
        exact = scaled_dot_product_attention(query, key, value).transpose(1, 2)
        rounded = [x.bfloat16() for x in (query, key, value)]
        layer = LlamaAttention(LlamaConfig(**SIZES), layer_idx=0)
        theirs, _ = eager_attention_forward(layer, *rounded, None, scaling=16**-0.5)
        mine, _ = plain_attention(nn.Identity(), *rounded, None)
        assert (mine - exact).norm() < 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize("scaling", [None, 0.1, 1.0])
def test_plain_products_are_scaled_as_they_are_asked_to_be(scaling):
    query, key, value = torch.randn((3, 2, 4, 7, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, _ = plain_attention(nn.Identity(), query, key, value, None, scaling=scaling)
    full = scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
    torch.testing.assert_close(mine, full)


def test_plain_products_drop_weights_in_training_alone_and_keep_their_mean():
    """With equal weights and values of 1 an output is the share of keys that were kept, over what is to be kept."""
    zeros, ones, share = torch.zeros(64, 2, 50, 4), torch.ones(64, 2, 50, 4), 0.3
    layer = nn.Identity()
    torch.manual_seed(0)
    trained, _ = plain_attention(layer.train(), zeros, zeros, ones, None, dropout=share)
    found = trained[..., 0].flatten()
    expected = (share / (1 - share) / 50) ** 0.5
    assert abs(float(found.mean()) - 1) < 5 * expected / len(found) ** 0.5
    assert float(found.std()) == pytest.approx(expected, rel=0.05)
    evaluated, _ = plain_attention(layer.eval(), zeros, zeros, ones, None, dropout=share)
    torch.testing.assert_close(evaluated, torch.ones_like(evaluated))


def test_plain_products_bend_what_gemma_2_bends():
    from transformers import Gemma2Config

    sizes = SIZES | {"head_dim": 8, "num_key_value_heads": 1, "num_hidden_layers": 2, "attn_logit_softcapping": 0.5}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**sizes, initializer_range=1.0)).eval()
    tokens, found = torch.arange(1, 8)[None], {}
    for kernel in ("eager", "plain"):
        model.set_attn_implementation(kernel)
        found[kernel] = model(tokens).logits
    torch.testing.assert_close(found["plain"], found["eager"])


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_what_plain_products_lack_is_refused_where_a_layer_asks_for_it(name):
    query = torch.ones(1, 1, 2, 4)
    plain_attention(nn.Identity(), query, query, query, None, **{name: None}, sliding_window=4)
    with pytest.raises(ValueError, match=f"has no {name}, which Identity needs"):
        plain_attention(nn.Identity(), query, query, query, None, **{name: torch.ones(1)})

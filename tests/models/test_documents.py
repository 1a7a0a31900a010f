"""Documents that share a row and do not see one another: as if each had a row of its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, MistralConfig, MixtralConfig, ModernBertConfig, RobertaConfig

from unmask import (
    Blockwise,
    Decoding,
    IndependentMasking,
    MaskedBatch,
    MaskedDiffusionLM,
    MaskedMean,
    ProgressiveUnmasking,
    RowStream,
    generate,
)
from unmask.data.checks import check_rows
from unmask.models.attention import DocumentLayout

MASK, V = 19, 20
SIZE = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "mistral": MistralConfig(**SIZE, num_key_value_heads=1, sliding_window=2),
    "modernbert": ModernBertConfig(**SIZE, local_attention=4, global_attn_every_n_layers=2, pad_token_id=0),
    "roberta": RobertaConfig(**SIZE, pad_token_id=1, max_position_embeddings=64),  # counts positions from 2
}
DOCUMENTS = [[4, 3], [2, 5, 2], [6]]
"""Lengths of the documents of each row."""


def _model(name: str, kernel: str, shifted: bool = False, spread: float = 0.3) -> MaskedDiffusionLM:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    config._attn_implementation, config.initializer_range = kernel, spread
    return MaskedDiffusionLM.from_config(config, MASK, shifted)


def _rows(first_given: bool = False) -> tuple[Dataset, Dataset]:
    """Packed rows, and the same documents in rows of their own."""
    generator = torch.Generator().manual_seed(1)
    alone = [
        {
            "tokens": torch.randint(MASK, (n,), generator=generator).tolist(),
            "maskable": [not first_given] + [True] * (n - 1),
        }
        for lengths in DOCUMENTS
        for n in lengths
    ]
    waiting, packed = iter(alone), []
    for lengths in DOCUMENTS:
        parts = [next(waiting) for _ in lengths]
        row = {name: list(chain(*(part[name] for part in parts))) for name in ("tokens", "maskable")}
        packed.append(row | {"document": [i for i, n in enumerate(lengths) for _ in range(n)]})
    return Dataset.from_list(packed), Dataset.from_list(alone)


def _found(model, dataset, masked, weights):
    """Loss, gradients and the nll of masked tokens, of rows whose masks and weights are laid end to end."""
    clean = RowStream(dataset).rows(torch.arange(len(dataset)))
    spread = torch.zeros(clean.tokens.shape).masked_scatter(clean.attention, weights)
    where = torch.zeros_like(clean.attention).masked_scatter(clean.attention, masked)
    output = model(MaskedBatch(clean, where, None, None), spread)
    model.zero_grad()
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.loss, gradients, output.nll[where]


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "shifted"), [("llama", False), ("llama", True), ("mistral", False), ("modernbert", False)]
)
def test_loss_and_gradients_are_those_of_documents_in_rows_of_their_own(name, shifted, kernel):
    if (name, kernel) == ("modernbert", "plain"):
        pytest.skip("takes its kernels by name")
    packed, alone = _rows(first_given=shifted)
    maskable = torch.tensor([flag for row in alone["maskable"] for flag in row])
    generator = torch.Generator().manual_seed(2)
    masked = (torch.rand(len(maskable), generator=generator) < 0.6) & maskable
    weights = torch.rand(len(maskable), generator=generator)
    model = _model(name, kernel, shifted)
    (loss, gradients, nll), (wanted, theirs, own) = (_found(model, rows, masked, weights) for rows in (packed, alone))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll, own, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == theirs.keys()
    for weight, gradient in gradients.items():
        assert (gradient - theirs[weight]).norm() <= 1e-5 * theirs[weight].norm(), weight
    joined = packed.remove_columns("document")
    assert abs(float(_found(model, joined, masked, weights)[0] - loss)) > 1e-3  # it matters


def test_positions_begin_anew_and_only_the_own_document_is_seen():
    document = torch.tensor([[3, 3, 5, 5, 5, 0], [1, 1, 1, 1, 1, 1]])
    real = torch.tensor([[True] * 5 + [False], [True] * 6])
    layout = DocumentLayout.of(document, real)
    assert layout.position.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    wanted = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(1, 1)).bool()
    assert torch.equal(layout.visible()[0], wanted)
    assert layout.visible()[1].all()
    assert DocumentLayout.of(document[1:], real[1:]) is None


@pytest.mark.parametrize("filled", [3, 9])
def test_padding_before_a_row_of_documents_changes_nothing(filled):
    """Whether it bears the number of the first document or one of its own."""
    model = _model("roberta", "sdpa").eval()
    tokens, document = torch.arange(2, 8)[None], torch.tensor([[3, 3, 3, 5, 5, 5]])
    before = torch.full((1, 2), filled)
    padded = torch.cat([before, tokens], 1), torch.cat([before, document], 1)
    real = padded[0].new_tensor([[0] * 2 + [1] * 6]).bool()
    alone = model.hidden(tokens, real[:, 2:], document=document)
    torch.testing.assert_close(model.hidden(padded[0], real, document=padded[1])[:, 2:], alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_keeps_documents_apart_as_the_dense_mask_does():
    """By torch's kernel itself; transformers compiles it, which needs a GPU."""
    document = torch.tensor([[0] * 4 + [1] * 3 + [0], [2] * 2 + [5] * 6])
    real = torch.ones_like(document, dtype=torch.bool)
    real[0, -1] = False
    layout = DocumentLayout.of(document, real)
    mask = layout.attention_mask(_model("llama", "flex_attention").backbone)
    query, key, value = torch.randn(3, 2, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    found = flex_attention(query, key, value, block_mask=mask)
    wanted = nn.functional.scaled_dot_product_attention(query, key, value, layout.visible()[:, None])
    torch.testing.assert_close(found, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention is compiled for CUDA")
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_attention_trains_on_packed_documents_as_the_dense_mask_does(name):
    packed, _ = _rows()
    count = sum(map(len, packed["tokens"]))
    masked = torch.rand(count, generator=torch.Generator().manual_seed(2)) < 0.6
    weights = torch.ones(count)
    found = [_found(_model(name, kernel).cuda(), packed, masked, weights) for kernel in ("sdpa", "flex_attention")]
    (loss, gradients, _), (flexed, theirs, _) = found
    torch.testing.assert_close(flexed, loss, atol=1e-3, rtol=1e-3)
    for weight, gradient in gradients.items():
        assert (theirs[weight] - gradient).norm() <= 1e-2 * gradient.norm(), weight


@pytest.mark.parametrize(("name", "shifted"), [("llama", False), ("llama", True), ("modernbert", False)])
@pytest.mark.parametrize("decoding", [Decoding(steps=1), Decoding("left_to_right"), Decoding("right_to_left")])
def test_decoding_gives_what_documents_in_rows_of_their_own_give(name, shifted, decoding):
    """The same tokens as surely, whatever stands beside them; and each ends where it would end by itself."""
    packed, alone = _rows(first_given=True)
    model = _model(name, "sdpa", shifted)
    parted, own = (RowStream(rows).rows(torch.arange(len(rows))) for rows in (packed, alone))
    (end,) = generate(model, own, decoding).tokens[own.maskable].mode().values[None].tolist()
    for end_token_id in (None, end):
        (tokens, sure), (wanted, surely) = (
            (made.tokens[clean.attention], made.confidence[clean.attention])
            for clean in (parted, own)
            for made in [generate(model, clean, decoding, batch_size=2, end_token_id=end_token_id)]
        )
        assert torch.equal(tokens, wanted)
        torch.testing.assert_close(sure, surely, rtol=1e-4, atol=1e-5)
    joined = generate(model, replace(parted, document=None), decoding)
    apart = generate(model, parted, decoding)
    assert (joined.confidence - apart.confidence).abs().max() > 1e-3  # it matters


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_the_routers_loss_counts_no_padding(attention):
    sizes = SIZE | {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16}
    config = MixtralConfig(**sizes, output_router_logits=True, initializer_range=0.3)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = MaskedDiffusionLM.from_config(config, MASK).train()
    clean = RowStream(_rows()[0]).rows(torch.arange(1))
    padded, masked = clean.padded(12), clean.maskable & (clean.tokens % 2 == 0)
    balance = model(MaskedBatch(clean, masked, None, None)).balance
    wider = torch.nn.functional.pad(masked, (0, 12 - clean.length))
    torch.testing.assert_close(model(MaskedBatch(padded, wider, None, None)).balance, balance)


@pytest.mark.parametrize(
    "masking", [IndependentMasking(), ProgressiveUnmasking(stages=3, pool="batch")], ids=["standard", "puma"]
)
def test_a_run_trains_on_packed_documents(trainer, masking):
    packed, _ = _rows()
    rows = Dataset.from_list(packed.to_list() * 4)
    run = trainer(
        model=_model("llama", "sdpa", spread=0.02),
        dataset=rows,
        masking=masking,
        objective=MaskedMean(),
        batch_size=4,
        steps=2,
    )
    run.train()
    assert run.process.draw().clean.document is not None


def test_what_cannot_keep_documents_apart_says_so(trainer):
    packed, _ = _rows()
    with pytest.raises(ValueError, match=r"first token is maskable.*begin texts with a BOS"):
        check_rows(packed.map(lambda row: {"maskable": [False, *row["maskable"][1:]]}), MASK, V, shifted=True)
    masking = Blockwise(IndependentMasking(), size=2)
    with pytest.raises(ValueError, match="cannot be cut into blocks"):
        trainer(model=_model("llama", "sdpa"), dataset=packed, masking=masking, batch_size=1).train()
    clean = RowStream(packed).rows(torch.arange(2))
    with pytest.raises(ValueError, match="cannot be cut into blocks"):
        generate(_model("llama", "sdpa"), clean, Decoding(block_size=2, causal_blocks=True))
    torch.manual_seed(0)
    model = _model("llama", "sdpa")
    model.backbone.config._attn_implementation = "flash_attention_2"
    batch = IndependentMasking().start(RowStream(packed), 3).draw()
    with pytest.raises(ValueError, match=r"documents that are kept apart.*takes no mask.*flex_attention"):
        model(batch)

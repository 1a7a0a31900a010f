"""Attention by plain products, and who sees whom where a row is cut into blocks.

Block b is predicted from the clean blocks before it and from its own noisy state (block diffusion,
arXiv 2503.09573). All blocks of a row are predicted in one forward over two copies of it: a noisy position sees
the noisy positions of its own block and the clean ones of earlier blocks; a clean position sees the clean ones of
its own and earlier blocks. Padding is seen by nobody. Only the parts of the copies that some prediction reads are
run: with one block that is the noisy row alone, with blocks of one token and a shifted read-out the clean row
alone, under a causal mask.

Rows may also hold several documents, none of which sees another (`DocumentLayout`).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from unmask.batch import Tensors, begins_of

LAYERS = {"full_attention", "sliding_attention"}
PADDING = "padding"
"""What a backbone may be unfit for besides the layouts below: rows that are padded to the length of a longer one."""
_OF_OTHER_KERNELS = ("s_aux", "sinks", "position_bias", "indices", "block_indices")


class _Products(torch.autograd.Function):
    """query keyᵀ, whose gradient with respect to the keys is laid out as the keys are.

    Autograd's own is that of keyᵀ, [B, H, d, L]: all that is done to it on the way back to the hidden states would
    walk over it element by element.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(query, key)
        return query @ key.transpose(2, 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        query, key = ctx.saved_tensors
        return gradient @ key, gradient.transpose(2, 3) @ query


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The kernel "plain" of transformers' attention: as "eager", with fewer passes over the weights.

    The queries are scaled instead of the products, and the softmax, whose sums are fp32 in any case, writes in the
    precision of the products, so that nothing of size [B, H, L, L] is cast.

    Args:
        module: the attention layer.
        query: [B, H, L, d].
        key: [B, G, L, d], each for H / G heads.
        value: [B, G, L, d].
        attention_mask: bool, broadcasts to [B, H, L, L]: query sees key. None: all see all.
        scaling: factor of the products; None for d^-1/2.
        dropout: share of the weights that are dropped.
        softcap: products are bent to stay within ± this; None for as they are.
        others: what layers hand to every kernel, for the masks or for nothing.

    Returns:
        [B, L, H, d], contiguous, and no weights.

    Raises:
        ValueError: for what would change the result in kernels that know it (attention sinks, biases of positions).
    """
    if unknown := [name for name in _OF_OTHER_KERNELS if others.get(name) is not None]:
        raise ValueError(f"attention 'plain' has no {unknown[0]}, which {type(module).__name__} needs: use 'eager'")
    if key.shape[1] != query.shape[1]:
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    # A rotary embedding leaves queries and keys in fp32 under autocast, the values are as the products are to be.
    scaled = query.mul(query.shape[-1] ** -0.5 if scaling is None else scaling).to(value.dtype)
    weights: Tensor = _Products.apply(scaled, key.to(value.dtype))
    if softcap is not None:
        weights = (weights / softcap).tanh() * softcap
    if attention_mask is not None:  # not -inf: padding may see nothing at all
        weights = weights.masked_fill_(~attention_mask, torch.finfo(weights.dtype).min)
    weights = nn.functional.dropout(weights.softmax(-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _plain_mask(**options: Any) -> Tensor | None:
    options["allow_is_causal_skip"] = False
    return sdpa_mask(**options)


AttentionInterface.register("plain", plain_attention)
AttentionMaskInterface.register("plain", _plain_mask)


class Layout(Tensors):
    """Who sees whom in one forward, and how a backbone is told. A subclass says it as `sees`, and `use` in words."""

    use: ClassVar[str]
    position: Tensor
    """[B, N] or [N] int64, from 0."""

    @property
    def run(self) -> Tensor:
        """[B, N], any of its tensors: tells the shape of what is run, and where."""
        raise NotImplementedError

    def sees(self, row: Any, query: Any, key: Any, window: int | None = None) -> Tensor:
        """Whether token `query` of row `row` sees token `key`; index tensors that broadcast.

        With a window, nothing further away than so many positions is seen.
        """
        raise NotImplementedError

    def visible(self, window: int | None = None) -> Tensor:
        """[B, N, N] bool: query, key."""
        row, token = (torch.arange(count, device=self.run.device) for count in self.run.shape)
        return self.sees(row[:, None, None], token[:, None], token, window)

    def attention_mask(self, backbone: nn.Module) -> Any:
        """The mask as the backbone's attention takes it: a flex attention `BlockMask`, bool or additive [B, 1, N, N].

        A dict of them where its layers differ.

        Raises:
            ValueError: for a backbone that cannot be told who sees whom.
        """
        config = getattr(backbone, "config", None)
        kinds = layer_kinds(backbone, self.use)
        kernel = getattr(config, "_attn_implementation", "sdpa")
        window = getattr(config, "sliding_window", None)

        def make(window: int | None) -> Any:
            if kernel == "flex_attention":
                rows, count = self.run.shape
                return create_block_mask(
                    lambda b, h, q, k: self.sees(b, q, k, window), rows, None, count, count, self.run.device.type
                )
            seen = self.visible(window)[:, None]
            if kernel in ("sdpa", "plain"):
                return seen
            return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)

        if "sliding_attention" in kinds:
            return {kind: make(window if kind == "sliding_attention" else None) for kind in LAYERS}
        return make(None if kinds else window)


@dataclass(frozen=True)
class DocumentLayout(Layout):
    """Rows of several documents, none of which sees another.

    Attributes:
        document: [B, L] int64, of each position.
        real: [B, L] bool, no padding.
        position: [B, L] int64, how many real tokens of the document come before.
    """

    use: ClassVar[str] = "documents that are kept apart"

    document: Tensor
    real: Tensor
    position: Tensor

    @classmethod
    def of(cls, document: Tensor, real: Tensor) -> DocumentLayout | None:
        """As `TokenBatch.document` and `attention` say; None where each row is a single document."""
        begins = begins_of(document)
        if not bool((begins & real)[:, 1:].any()):
            return None
        before = real.cumsum(1) - real.long()  # padding, wherever it is, has no place in the count
        first = torch.where(begins, before, 0).cummax(1).values
        return cls(begins.cumsum(1), real, before - first)

    @property
    def run(self) -> Tensor:
        """[B, L]."""
        return self.document

    def sees(self, row: Any, query: Any, key: Any, window: int | None = None) -> Tensor:
        """The real tokens of its own document; padding sees itself, so that no row of the softmax is empty."""
        seen = (self.document[row, query] == self.document[row, key]) & self.real[row, key] | (query == key)
        return seen if window is None else seen & ((query - key).abs() <= window)


@dataclass(frozen=True)
class BlockLayout(Layout):
    """The tokens of one forward, and where each position's prediction is read.

    Attributes:
        position: [N] int64 position in the row of each token that is run.
        noisy: [N] bool, whether it is of the noisy copy.
        block: [B, N] int64 its block.
        real: [B, N] bool, no padding.
        source: [B, L] int64 which of the N hidden states predicts a position. Where nothing is predicted it
            points anywhere.
    """

    use: ClassVar[str] = "blocks"

    position: Tensor
    noisy: Tensor
    block: Tensor
    real: Tensor
    source: Tensor

    @classmethod
    def single(cls, block: Tensor, real: Tensor, predictor: Tensor) -> BlockLayout:
        """One copy, in which each position sees its own and earlier blocks: of rows whose earlier blocks are known.

        Args:
            block: [B, L] int64 block of each position, from 0, never decreasing along a row.
            real: [B, L] bool, no padding.
            predictor: [L] int64, the position whose hidden state predicts position i.
        """
        every = torch.ones(block.shape[1], dtype=torch.bool, device=block.device)
        return cls._make(~every, every, block, real, predictor)

    @classmethod
    def double(cls, block: Tensor, real: Tensor, predictor: Tensor, masked: Tensor) -> BlockLayout:
        """Both copies, as far as the predictions of the masked positions [B, L], at least one, need them."""
        read_noisy = masked & (block[:, predictor] == block)
        busy = torch.zeros_like(block).scatter_add(1, block, read_noisy.long()).gather(1, block) > 0
        last = torch.where(masked, block, 0).amax(1, keepdim=True)
        return cls._make((busy & real).any(0), ((block < last) & real).any(0), block, real, predictor)

    @classmethod
    def _make(cls, noisy: Tensor, clean: Tensor, block: Tensor, real: Tensor, predictor: Tensor) -> BlockLayout:
        """Run the positions `noisy` [L] of the noisy copy and `clean` [L] of the clean one."""
        if bool((block.diff(dim=1) < 0).any()):
            raise ValueError("block numbers must not decrease along a row: a block is predicted from those before it")
        first, second = noisy.nonzero()[:, 0], clean.nonzero()[:, 0]
        position = torch.cat([first, second])
        place = torch.arange(len(position), device=block.device)
        # Row 1: where a position's state for predictions of its own block is; row 0: for those of later blocks.
        where = torch.zeros(2, block.shape[1], dtype=torch.int64, device=block.device)
        where[:, second] = place[len(first) :]
        where[1, first] = place[: len(first)]
        own = block[:, predictor] == block
        source = torch.where(own, where[1, predictor], where[0, predictor])
        return cls(position, place < len(first), block[:, position], real[:, position], source)

    def tokens(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """[B, N] tokens to run, of the noisy and the clean rows [B, L]."""
        return torch.where(self.noisy, noisy[:, self.position], clean[:, self.position])

    def read(self, hidden: Tensor) -> Tensor:
        """[B, L, d] states that predict each position, out of those of the tokens run [B, N, d]."""
        return hidden.gather(1, self.source[..., None].expand(-1, -1, hidden.shape[-1]))

    @property
    def run(self) -> Tensor:
        """[B, N]."""
        return self.block

    def sees(self, row: Any, query: Any, key: Any, window: int | None = None) -> Tensor:
        """As the page says at its top."""
        query_block, key_block = self.block[row, query], self.block[row, key]
        query_noisy, key_noisy = self.noisy[query], self.noisy[key]
        of_clean = ~key_noisy & (key_block + query_noisy <= query_block)
        of_noisy = key_noisy & query_noisy & (key_block == query_block)
        # Padding sees itself, so that no row of the softmax is empty; nothing reads what comes of it.
        seen = (of_clean | of_noisy) & self.real[row, key] | (query == key)
        if window is not None:
            seen = seen & ((self.position[query] - self.position[key]).abs() <= window)
        return seen


def layer_kinds(backbone: nn.Module, use: str) -> set[str]:
    """Kinds of attention among the backbone's layers; empty where all are alike. `use`: of the mask, in words.

    Raises:
        ValueError: for a backbone whose forward, or whose kernel, cannot be told who sees whom.
    """
    config = getattr(backbone, "config", None)
    kinds: set[str] = set(getattr(config, "layer_types", None) or ())
    kernel = getattr(config, "_attn_implementation", "sdpa")
    problem = None
    if kernel not in ("eager", "plain", "sdpa", "flex_attention"):
        problem = f'its attention "{kernel}" takes no mask: load it with attn_implementation="sdpa", "plain", '
        problem += '"eager" or "flex_attention"'
    elif kinds - LAYERS:
        problem = (
            f"it has layers of kind {', '.join(sorted(kinds - LAYERS))}, which pass information on by themselves"
        )
    elif "position_ids" not in inspect.signature(backbone.forward).parameters or getattr(config, "alibi", False):
        problem = "it takes no position_ids, so positions cannot be counted as that needs"
    if problem:
        raise ValueError(f"{type(backbone).__name__} cannot be used with {use}: {problem}")
    return kinds

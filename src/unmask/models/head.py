"""The masked head: loss, per-token nll, scores and gradients at masked positions, in one pass over chunks.

No [B, L, V] tensor exists: logits are made for a chunk of masked positions, reduced in fp32 to the loss,
the statistics that were asked for and the gradients, and dropped. The mask token is excluded from the
distribution, so it can neither win nor take probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unmask.batch import at_least_fp32, relative_to_best, statistics
from unmask.models.readout import ReadOut

CHUNK_ELEMENTS = 1 << 23
"""Logits held at a time: 32 MiB in fp32. More where the weight is trained and half of the hidden size's rows need
more: every chunk reads the weight's gradient and adds to it, which many rows must share; the logits are then half as
large as that gradient."""


class _MaskedCrossEntropy(torch.autograd.Function):
    """Σ weight · nll with the gradients computed in the forward, while each chunk's logits are at hand.

    What is kept for the backward is free of the loss's scale: each row's gradient is that of its nll alone, and the
    weight's that of a loss whose largest token weight is 1. So half precision holds them however small 1/Z is, and
    they are rounded to it once more only after the backward has multiplied them by token weights and loss scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor,
        mask_token_id: int,
        needs: tuple[str, ...] | None,
        dtype: torch.dtype,
        with_gradients: bool,
        sharpness: Tensor | None,
        after: Callable[[Tensor], Tensor] | None,
        unused: Tensor | None,
        *late: Tensor,
    ) -> tuple[Tensor | None, ...]:
        wide = at_least_fp32(dtype)
        count, size = len(hidden), weight.shape[0]
        nll = hidden.new_empty(count, dtype=wide)
        entropy = hidden.new_zeros(count, dtype=wide)
        found = {name: hidden.new_zeros(count, dtype=wide) for name in _names(needs)}
        w = weight.to(dtype)
        d_hidden = torch.empty_like(hidden) if with_gradients else None
        # A frozen output layer, as under LoRA, costs neither the product nor the memory of its gradient.
        d_weight, d_bias = (
            torch.zeros_like(leaf, dtype=wide) if with_gradients and leaf is not None and leaf.requires_grad else None
            for leaf in (weight, bias)
        )
        d_late = [torch.zeros_like(leaf, dtype=wide) for leaf in late] if with_gradients else []
        largest = token_weights.abs().max() if count else token_weights.new_ones(())
        relative = (token_weights / torch.where(largest > 0, largest, 1))[:, None]

        step = max(1, CHUNK_ELEMENTS // size, 0 if d_weight is None else hidden.shape[1] // 2)
        # What is cast or added in fp32 is a part of the vocabulary at a time: a second tensor of the logits' or the
        # gradient's size would set the peak, and be mapped anew by the system every time.
        each = max(1, CHUNK_ELEMENTS // hidden.shape[1])
        parts = [slice(start, start + each) for start in range(0, size, each)]
        buffer = hidden.new_empty(min(step, count), size, dtype=wide)
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            h = hidden[rows].to(dtype)
            target = targets[rows, None]
            logits = buffer[: len(h)]
            for part in parts:
                logits[:, part] = _product(h, w[part].T, wide)
            if bias is not None:
                logits += bias
            back = None
            if after is not None:
                logits, back = _through(after, logits, late)
            logits[:, mask_token_id] = -torch.inf
            if unused is not None:
                logits[:, unused] = -torch.inf
            truth = logits.gather(1, target)
            others, best, index = relative_to_best(logits)  # one exponentiation serves loss, scores and gradient
            rest = others.sum(-1)
            nll[rows] = rest.log1p() - (truth - best)[:, 0]
            if needs is not None:
                for name, value in statistics(others, rest, needs).items():
                    found[name][rows] = value
            if sharpness is not None:
                entropy[rows] = statistics(others, rest, ("entropy",))["entropy"]
            if d_hidden is None:
                continue
            d_logits = others.scatter_(1, index, 1.0).mul_(1 / (1 + rest[:, None]))  # the softmax
            if sharpness is not None:  # the entropy's gradient is -p (log p + entropy)
                share = sharpness[rows, None]
                curve = torch.special.entr(d_logits).mul_(share)
                d_logits.mul_(1 - share * entropy[rows, None]).add_(curve)
            d_logits.scatter_add_(1, target, -torch.ones_like(truth))
            if back is not None:
                for total, part in zip(d_late, back(d_logits * relative[rows], late), strict=True):
                    total += part
                d_logits = back(d_logits)[0]
            if d_bias is not None:
                d_bias += (d_logits.T @ relative[rows])[:, 0]
            d_state, scaled = torch.zeros_like(h, dtype=wide), (hidden[rows] * relative[rows]).to(dtype)
            for part in parts:
                d_part = d_logits[:, part].to(dtype)
                d_state += _product(d_part, w[part], wide)
                if d_weight is None:
                    continue
                if dtype == wide:
                    d_weight[part].addmm_(d_part.T, scaled)
                else:
                    d_weight[part] += _product(d_part.T, scaled, wide)
            d_hidden[rows] = d_state.to(d_hidden.dtype)
            if "gradient" in found:
                found["gradient"][rows] = d_state.norm(dim=-1) * token_weights[rows].abs()
        ctx.gradients = (d_hidden, d_weight, d_bias, *d_late) if with_gradients else None
        ctx.token_weights, ctx.largest = token_weights, largest
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype, *(leaf.dtype for leaf in late)
        extra = tuple(found[name] for name in _names(needs))
        ctx.mark_non_differentiable(nll, *extra)
        loss = nll if sharpness is None else nll + sharpness * entropy
        return ((loss * token_weights).sum(), nll, *extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError(
                "the masked head computes its gradients in the forward and gives them up in the first backward; "
                "run the forward again for a second one"
            )
        d_hidden, *rest = ctx.gradients
        ctx.gradients = None
        d_hidden.mul_((ctx.token_weights * upstream[0])[:, None])  # in the scale's precision, then rounded
        d_weight, d_bias, *d_late = (
            None if g is None else g.mul_(ctx.largest * upstream[0]).to(dtype)
            for g, dtype in zip(rest, ctx.dtypes, strict=True)
        )
        return d_hidden, d_weight, d_bias, *[None] * 9, *d_late


def _through(
    after: Callable[[Tensor], Tensor], logits: Tensor, late: tuple[Tensor, ...]
) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
    """What a function makes of the logits, and how a gradient of it goes back: to the logits, or to leaves."""
    given = logits.detach().requires_grad_()
    with torch.enable_grad():
        made = after(given.clone())  # it may write into what it is given

    def back(gradient: Tensor, leaves: tuple[Tensor, ...] = (given,)) -> tuple[Tensor, ...]:
        return torch.autograd.grad(made, leaves, gradient.to(made.dtype), retain_graph=bool(late)) if leaves else ()

    return made.detach().to(logits.dtype, copy=True), back


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b; of fp16 factors in `wide`, for sums over many rows or tokens leave the range of fp16."""
    if a.dtype != torch.float16:
        return a @ b
    return torch.mm(a, b, out_dtype=wide) if a.is_cuda else a.to(wide) @ b.to(wide)


def _names(needs: tuple[str, ...] | None) -> tuple[str, ...]:
    """Statistics in the order they are returned: the log-confidence comes with every request."""
    return () if needs is None else ("log_confidence", *(n for n in needs if n != "log_confidence"))


@torch.compiler.disable()  # or the loop over chunks is unrolled and compiled anew for every number of masked tokens
def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor,
    mask_token_id: int,
    needs: tuple[str, ...] | None = None,
    sharpness: Tensor | None = None,
    after: Callable[[Tensor], Tensor] | None = None,
    unused: Tensor | None = None,
    late: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted cross-entropy at masked positions, with the scores of the same pass.

    Args:
        hidden: [N, d] hidden states aligned with the positions they predict.
        weight: [V, d] output embedding; may be tied to the input embedding.
        bias: [V] or None.
        targets: [N] clean token ids.
        token_weights: [N] weight of each token's nll, the normaliser 1/Z included.
        mask_token_id: token excluded from the distribution.
        needs: statistics of `Scores` wanted besides; None for none. "gradient" adds the length of the loss's
            gradient with respect to each hidden state.
        sharpness: [N] share of each prediction's entropy, times the token's weight, in the loss; None for none.
        after: what the model does to its logits [N, V], row by row and differentiably; None for nothing.
        unused: int64 ids that are excluded as the mask token is.
        late: weights that `after` reads, and that are trained.

    Returns:
        The loss Σ weight · nll (differentiable in hidden, weight and bias), nll [N] and the statistics, each
        [N], in fp32 (float64 where the hidden states are); nll and statistics carry no gradient.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    leaves = (hidden, weight, *late) if bias is None else (hidden, weight, bias, *late)
    with_gradients = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    wide = at_least_fp32(dtype)
    with torch.autocast(kind, enabled=False):
        loss, nll, *extra = _MaskedCrossEntropy.apply(
            hidden,
            weight,
            bias,
            targets,
            token_weights.to(wide),
            mask_token_id,
            needs,
            dtype,
            with_gradients,
            None if sharpness is None else sharpness.to(wide),
            after,
            unused,
            *late,
        )
    return loss, nll, dict(zip(_names(needs), extra, strict=True))


class MaskedHead(nn.Module):
    """An output projection evaluated at masked positions alone.

    Args:
        output: the linear output layer [V, d]; its weight may be tied to the input embedding.
        readout: what the library's model does before and after it, at masked positions alone. None for nothing.
        unused: ids of the vocabulary that no token has, int64; they have probability zero, as the mask token has.
    """

    unused: Tensor | None

    def __init__(self, output: nn.Module, readout: ReadOut | None = None, unused: Tensor | None = None) -> None:
        super().__init__()
        self.output, self.readout = output, readout
        self.register_buffer("unused", unused, persistent=False)

    @property
    def choices(self) -> int:
        """Tokens that a prediction chooses among: all but the mask token and ids that no token has."""
        return self.vocab_size - 1 - (0 if self.unused is None else len(self.unused))

    @property
    def vocab_size(self) -> int:
        """V, the mask token and ids that no token has included."""
        return cast(Tensor, self.output.weight).shape[0]

    def excluded(self, mask_token_id: int, device: torch.device | str = "cpu") -> Tensor:
        """[V] bool: the mask token and ids that no token has, whose probability is zero."""
        found = torch.arange(self.vocab_size, device=device) == mask_token_id
        if self.unused is not None:
            found[self.unused.to(device)] = True
        return found

    def prepared(self, hidden: Tensor) -> Tensor:
        """[N, d'] what the output layer reads of the states [N, d]."""
        return self.readout.before(hidden) if self.readout is not None and self.readout.changes_states else hidden

    def adopt(self) -> None:
        """Take notice of modules that were replaced in the library's model, as adapters do."""
        if self.readout is not None:
            self.readout.adopt()

    def late(self) -> list[Tensor]:
        """Trained weights that are read after the output layer."""
        return [] if self.readout is None else self.readout.late()

    @property
    def _after(self) -> Callable[[Tensor], Tensor] | None:
        return self.readout.after if self.readout is not None and self.readout.changes_logits else None

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        mask_token_id: int,
        needs: tuple[str, ...] | None = None,
        sharpness: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `masked_cross_entropy`. hidden is [N, d]: the masked positions alone."""
        weight, bias = cast(Tensor, self.output.weight), cast("Tensor | None", getattr(self.output, "bias", None))
        return masked_cross_entropy(
            self.prepared(hidden),
            weight,
            bias,
            targets,
            token_weights,
            mask_token_id,
            needs,
            sharpness,
            self._after,
            self.unused,
            self.late(),
        )

    def logits(self, hidden: Tensor, mask_token_id: int) -> Tensor:
        """[N, V] logits in fp32 (float64 stays); the mask token and ids that no token has are at -inf."""
        logits = self.output(self.prepared(hidden))
        logits = logits.to(at_least_fp32(logits.dtype))
        if self._after is not None:
            logits = self._after(logits).to(logits.dtype)
        return logits.masked_fill(self.excluded(mask_token_id, logits.device), -torch.inf)

"""A model that makes its own logits, as a denoiser: any module that maps tokens to logits.

Its logits [B, L, V] take the place of hidden states, and a head without an output layer reads them. So loss, scores,
refits, likelihood and decoding are those of every other model. The memory that the masked head saves is not saved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from unmask.batch import relative_to_best, statistics
from unmask.models.families import evaluating
from unmask.models.head import MaskedHead


class LogitsBackbone(nn.Module):
    """A module that makes logits, called as a backbone is.

    Args:
        model: maps tokens [B, L], int64, and attention [B, L], bool (True for real tokens), to logits [B, L, V].
        attention: whether it takes the second; without it rows must have no padding.
    """

    def __init__(self, model: nn.Module, attention: bool) -> None:
        super().__init__()
        self.model, self.attention = model, attention

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> BaseModelOutput:
        """The logits, under the name of hidden states."""
        if self.attention:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
            logits = self.model(input_ids, real)
        elif attention_mask is None:
            logits = self.model(input_ids)
        else:
            raise ValueError(
                f"{type(self.model).__name__} takes tokens alone, and these rows have padding, which it would read "
                "too: let it take attention too (from_logits(..., attention=True)), or give rows of one length"
            )
        return BaseModelOutput(last_hidden_state=logits)

    def vocab_size(self) -> int:
        """V, as a row of two tokens shows.

        Raises:
            ValueError: where the module does not map them to logits.
        """
        name, given = type(self.model).__name__, "tokens [B, L], attention [B, L]" if self.attention else "tokens"
        device = next((weight.device for weight in self.model.parameters()), None)
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
        try:
            with torch.no_grad(), evaluating(self.model):
                logits = self(tokens, None).last_hidden_state
        except (IndexError, RuntimeError, TypeError) as error:
            other = "" if not self.attention else "; of a model of tokens alone give attention=False"
            raise ValueError(
                f"from_logits calls the model as {name}({given}), and it says: {error}{other}"
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{name} must return logits [B, L, V], and of tokens (1, 2) it returns {got}")
        return logits.shape[2]


class LogitsHead(MaskedHead):
    """The head of such a model: the states that it is given are logits [N, V] at the masked positions."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(nn.Identity())
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        """V, the mask token included."""
        return self._vocab_size

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        mask_token_id: int,
        needs: tuple[str, ...] | None = None,
        sharpness: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `masked_cross_entropy`. "gradient" is that of the loss with respect to the logits."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.logits(hidden, mask_token_id)
            weights = token_weights.to(logits.dtype)
            with torch.no_grad():  # as the masked head's: where the best token is the clean one, both are the same
                others, best, _ = relative_to_best(logits.clone())
                rest = others.sum(-1)
                nll = rest.log1p() - (logits.gather(1, targets[:, None]) - best)[:, 0]
                found = {} if needs is None else statistics(others, rest, needs)
            if "gradient" in (needs or ()):
                with torch.enable_grad():
                    leaf = logits.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(_losses(leaf, targets, sharpness).sum(), leaf)
                found["gradient"] = slope.norm(dim=-1) * weights.abs()
            return (_losses(logits, targets, sharpness) * weights).sum(), nll, found


def _losses(logits: Tensor, targets: Tensor, sharpness: Tensor | None) -> Tensor:
    """[N] what each prediction adds to the loss, before its weight."""
    log_p = logits.log_softmax(-1)
    nll = nn.functional.nll_loss(log_p, targets, reduction="none")
    if sharpness is None:
        return nll
    entropy = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(-1)  # what is excluded has none
    return nll + sharpness.to(nll.dtype) * entropy

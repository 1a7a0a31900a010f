"""Whether a wrapped model predicts what the library's own model predicts, and sees what a denoiser must see.

A family that puts something between backbone and logits that this library misses, or that keeps its causal mask,
would train to something else without a word. So every model that is wrapped is run on a few tokens first, and
compared. Nothing is known about families here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from unmask.config import require
from unmask.models.attention import PADDING, BlockLayout, DocumentLayout, layer_kinds
from unmask.models.families import evaluating, longest_row, text_config
from unmask.models.head import MaskedHead
from unmask.models.readout import leaves

LENGTH = 8
"""Tokens of a trial's row."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest difference of a logit from the library's, as a share of the largest logit, by the weights' dtype. Both run
the same products on the same states, so only what is done in another order differs; in half precision that is a few
units in the last place."""


class Denoiser(Protocol):
    """What is verified: a `MaskedDiffusionLM` of a Hugging Face model."""

    head: MaskedHead
    mask_token_id: int
    shifted: bool
    sees_only_masks: bool

    @property
    def backbone(self) -> Any:
        """What makes the hidden states."""
        ...

    @property
    def hugging_face(self) -> PreTrainedModel:
        """The library's model."""
        ...

    def hidden(
        self,
        noisy: Tensor,
        attention: Tensor,
        block: Tensor | None = None,
        clean: Tensor | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        """[B, L, d] states aligned with what they predict."""
        ...

    def predict(self, noisy: Tensor, attention: Tensor, masked: Tensor) -> Tensor:
        """[N, V] logits."""
        ...

    def parameters(self) -> Any:
        """All weights."""
        ...

    def named_parameters(self) -> Any:
        """All weights, by name."""
        ...


def has_values(model: PreTrainedModel) -> bool:
    """Whether there are weights to run: not on the meta device, and not parted by DeepSpeed before they are read."""
    return not any(p.is_meta or hasattr(p, "ds_id") for p in model.parameters())


def trial_rows(model: PreTrainedModel, barred: Collection[int], within: bool = True) -> Tensor:
    """[2, L] tokens of two rows that differ in the last one; short enough for the model's positions.

    None of them is one of `barred`: the mask token, and ids that no token has, whose embeddings may all be equal.
    Within: short enough for its windows too. ValueError where fewer than two tokens are left.
    """
    config, weight = text_config(model.config), cast(Any, model.get_output_embeddings()).weight
    window = getattr(config, "sliding_window", None) if within else None
    length = max(2, min(LENGTH, longest_row(model) or LENGTH, window if isinstance(window, int) else LENGTH))
    # From the end of the vocabulary: special tokens (padding, images), which a family may treat by itself, are rare.
    free = [token for token in reversed(range(len(weight))) if token not in barred]
    require(
        len(free) > 1,
        f"a vocabulary of {len(weight)} leaves {len(free)} tokens to predict, without the mask token and ids that no "
        "token has: there is nothing to choose among, so give the model two at least",
    )
    tokens = [free[i % len(free)] for i in range(2, length + 2)]
    other = next(token for token in free if token != tokens[-1])
    return torch.tensor([tokens, [*tokens[:-1], other]], device=weight.device)


def find_backbone(model: PreTrainedModel, barred: Collection[int]) -> tuple[PreTrainedModel, ModelOutput]:
    """The part of a language model that makes its hidden states, and what it returns for a few tokens.

    None of the tokens is one of `barred`.
    It is the outermost model inside that the forward runs and that returns `last_hidden_state`: `base_model` in most
    families, its decoder in some.

    Raises:
        ValueError: for a model that does not run on tokens alone, or has no such part.
    """
    rows, returned = trial_rows(model, barred)[:1], []

    def keep(module: Any, _: Any, output: Any) -> None:
        states = getattr(output, "last_hidden_state", None)
        if isinstance(states, Tensor) and states.shape[:2] == rows.shape:
            returned.append((module, output))

    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    hooks = [module.register_forward_hook(keep) for module in inside]
    try:
        with evaluating(model), torch.no_grad():
            model(input_ids=rows)
    except Exception as error:
        raise ValueError(f"{_name(model)} does not run on tokens alone: {_short(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not returned:
        raise ValueError(f"{_name(model)} runs no backbone that returns a hidden state for each token")
    return returned[-1]


@torch.no_grad()
def verify(model: Denoiser) -> None:
    """Compare a denoiser with the library's model, and look who sees whom. Leaves the model as it was.

    Two rows that differ in their last token are run, with that token and with it marked as padding, in evaluation
    mode and the weights' own dtype: four forwards of at most 16 tokens. Weights without values are not verified
    (meta device, DeepSpeed's partitions).

    Raises:
        ValueError: naming the family and what differs: logits, at any position, with or without padding; a last
            token that no position sees; padding that is seen.
    """
    hf = model.hugging_face
    if not has_values(hf):
        return
    rows = trial_rows(hf, _barred(model))
    real = torch.ones_like(rows, dtype=torch.bool)
    padded = real.clone()
    padded[:, -1] = False
    with evaluating(hf):
        seen = _compare(model, rows, real)
        if torch.equal(seen[0, :-1], seen[1, :-1]):
            raise ValueError(
                f"{_name(hf)} stays causal: no position sees the last token, whatever config.is_causal says; a "
                "masked diffusion model needs another backbone"
            )
        if torch.equal(seen[0, 0], seen[1, 0]):
            raise ValueError(f"{_name(hf)} is blind: the first of {rows.shape[1]} positions does not see the last")
        seen = _compare(model, rows, padded)[:, :-1]
        if not _close(seen[0], seen[1], _tolerance(hf)):
            raise ValueError(f"{_name(hf)} lets padding leak into real positions")
        every = torch.full_like(rows[:1], model.mask_token_id)
        model.sees_only_masks = bool(model.hidden(every, real[:1]).isfinite().all())


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether no position of a language model sees a later token, as two rows show that differ in the last one."""
    rows = trial_rows(model, ())
    with evaluating(model):
        logits = cast(Any, model)(input_ids=rows).logits[:, :-1]
    return _close(logits[0], logits[1], _tolerance(model))


@torch.no_grad()
def unfit_layouts(model: Denoiser) -> dict[str, str]:
    """Layouts under which a denoiser predicts otherwise than it should, with how that shows. Seven short forwards.

    A row with padding behind it is to be what it is without. Documents that share a row are to be what they are in
    rows of their own. A first block is to be what it is in a row of its own; the next, beside a clean copy of the
    row, what it is behind the clean blocks alone. A backbone that cannot be told who sees whom with the kernel that
    it has now says so where it is run.
    """
    hf = model.hugging_face
    if not has_values(hf):
        return {}
    row, found = trial_rows(hf, _barred(model), within=False)[:1], {}
    half = row.shape[1] // 2
    row, real = row[:, : 2 * half], torch.ones_like(row[:, : 2 * half], dtype=torch.bool)
    second = (torch.arange(2 * half, device=row.device) >= half).long()[None]
    masked = second + torch.arange(2 * half, device=row.device) % 2 == 1  # other places in each half
    noisy = row.masked_fill(masked, model.mask_token_id)

    def padding() -> tuple[Tensor, Tensor]:
        return model.hidden(row, second == 0)[:, :half], model.hidden(row[:, :half], real[:, :half])

    def documents() -> tuple[Tensor, Tensor]:
        together = model.hidden(row, real, document=second)[0].view(2, half, -1)
        return together[:, 1:], model.hidden(row.view(2, half), real.view(2, half))[:, 1:]

    def blocks() -> tuple[Tensor, Tensor]:
        first = model.hidden(noisy[:, :half], real[:, :half])
        behind = model.hidden(torch.where(second > 0, noisy, row), real, second)
        wanted = torch.cat([first, behind[:, half:]], 1)
        return model.hidden(noisy, real, second, row)[masked], wanted[masked]

    config = model.backbone.config
    window = getattr(config, "sliding_window", None)
    narrow = min(window, 2) if isinstance(window, int) else window

    def off(states: Callable[[], tuple[Tensor, Tensor]], width: int | None) -> str:
        """How the states differ from those wanted, under a window of this width; empty where they do not."""
        with evaluating(hf), _window(config, width):
            got, wanted = states()
        if _close(got, wanted, _tolerance(hf)):
            return ""
        most = float(wanted.abs().max())
        return f"its states are then off by {float((got - wanted).abs().max()):.2g} of at most {most:.2g}"

    trials = {PADDING: (padding, window)}
    for layout, states in ((DocumentLayout, documents), (BlockLayout, blocks)):
        with suppress(ValueError):
            layer_kinds(model.backbone, layout.use)
            trials[layout.use] = states, narrow
    for use, (states, width) in trials.items():
        try:
            why = off(states, width)
            if why and use != PADDING and window and not off(states, row.shape[1]):
                why += (
                    f", for its layers do not keep to the sliding_window={window} of its config: set that to None "
                    "before it is wrapped"
                )
        except Exception as error:
            why = f"it does not run so: {_short(error)}"
        if why:
            found[use] = why
    return found


@contextmanager
def _window(config: Any, width: int | None) -> Iterator[None]:
    """Let a config name another window of attention: one so narrow that a trial's rows tell who keeps to it."""
    own = getattr(config, "sliding_window", None)
    if width != own:
        config.sliding_window = width
    try:
        yield
    finally:
        if width != own:
            config.sliding_window = own


def freeze_unreached(model: Denoiser) -> None:
    """Freeze weights that no prediction depends on (a contact head, a pooler): an optimiser would only decay them,
    and DDP would wait for their gradients.

    A weight is kept whose namesake in another layer is reached: it may be an expert that was not chosen this time.
    """
    hf = model.hugging_face
    if not has_values(hf):
        return
    rows = trial_rows(hf, _barred(model))[:1]
    with evaluating(hf), torch.enable_grad():
        try:
            states = model.head.prepared(model.hidden(rows, torch.ones_like(rows, dtype=torch.bool)).flatten(0, 1))
        except NotImplementedError:  # an attention kernel without a backward on this device
            return
    reached = leaves(states) | {id(p) for p in (*model.head.output.parameters(), *model.head.late())}
    if states.grad_fn is None:
        return
    trained = [(re.sub(r"\d+", "#", name), p) for name, p in model.named_parameters() if p.requires_grad]
    kinds = {kind for kind, p in trained if id(p) in reached}
    for kind, parameter in trained:
        if kind not in kinds:
            parameter.requires_grad_(False)


def _compare(model: Denoiser, rows: Tensor, attention: Tensor) -> Tensor:
    """Raise ValueError where logits or losses differ from the library's; return the backbone's states [B, L, d]."""
    hf, states = model.hugging_face, []
    hook = model.backbone.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state))
    mask = None if bool(attention.all()) else attention
    try:
        theirs = hf(input_ids=rows, attention_mask=mask).logits
    except Exception as error:
        raise ValueError(f"{_name(hf)} does not run on tokens and a mask alone: {_short(error)}") from error
    finally:
        hook.remove()
    if theirs.shape[:2] != rows.shape:
        raise ValueError(f"{_name(hf)} gives logits of shape {tuple(theirs.shape)} for rows of {tuple(rows.shape)}")
    if model.shifted:
        theirs = theirs.roll(1, 1)
    predicted = attention.clone()
    predicted[:, 0] &= not model.shifted
    tolerance = _tolerance(hf)
    # Every other position, then the others: a read-out that mixes positions would be wrong for some of them alone.
    even = torch.arange(rows.shape[1], device=rows.device) % 2 == 0
    for places in (predicted & even, predicted & ~even):
        if not places.any():
            continue
        logits = theirs[places].float()
        logits[:, model.head.excluded(model.mask_token_id, logits.device)] = -torch.inf
        ours = model.predict(rows, attention, places)
        known = logits.isfinite()
        if not bool(logits[known].isfinite().all() and ours[known].isfinite().all()):
            raise ValueError(f"{_name(hf)} gives logits that are not finite")
        if not _close(ours[known], logits[known], tolerance):
            off = float((ours[known] - logits[known]).abs().max())
            raise ValueError(
                f"{_name(hf)} gives other logits than its backbone, read-out and output layer do (off by "
                f"{off:.2g}): its forward does more than can be taken over"
            )
        hidden, targets = model.hidden(rows, attention)[places], rows[places]
        _, nll, _ = model.head(hidden, targets, torch.ones(len(targets), device=rows.device), model.mask_token_id)
        truth = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        scale = float(logits[known].abs().max())
        if not _close(nll, truth, tolerance, scale):
            raise ValueError(
                f"{_name(hf)} has an output layer that is not linear: its loss would differ from its logits"
            )
    return states[0]


def _barred(model: Denoiser) -> set[int]:
    return set(model.head.excluded(model.mask_token_id).nonzero()[:, 0].tolist())


def _close(ours: Tensor, theirs: Tensor, share: float, scale: float = 0.0) -> bool:
    """Whether two tensors differ by at most a share of the largest entry."""
    ours, theirs = ours.double(), theirs.double()
    largest = max(scale, float(theirs.abs().max())) if theirs.numel() else 0.0
    return bool(((ours - theirs).abs() <= share * largest).all())


def _tolerance(model: PreTrainedModel) -> float:
    return max(TOLERANCE.get(p.dtype, 0.05) for p in model.parameters())


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"

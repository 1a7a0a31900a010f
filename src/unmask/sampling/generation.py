"""The decoding loop: forwards of the rows and positions that can still change, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import noise
from unmask.batch import Scores, TokenBatch, begins_of
from unmask.config import positive_int, require
from unmask.kinds import kinds_checked
from unmask.masks import smallest
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import evaluating
from unmask.policies import needs_of, resolve, top
from unmask.sampling.decoding import Decoding, draw_tokens

OnStep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Generation:
    """The result of `generate`.

    Attributes:
        tokens: [B, L] rows with their maskable positions filled.
        step: [B, L] decoding step at which a position was revealed (for the last time), from 0; -1 where it was
            given, or lies behind the end of its text and was not decoded.
        confidence: [B, L] top probability when revealed, fp32; 1 where step is -1.
        forwards: row forwards spent: a row that is finished, or waits, costs none.
        seconds: wall-clock time.
    """

    tokens: Tensor
    step: Tensor
    confidence: Tensor
    forwards: int
    seconds: float

    @property
    def revealed(self) -> int:
        """Tokens generated."""
        return int((self.step >= 0).sum())

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated for each second."""
        return self.revealed / max(self.seconds, 1e-9)

    @property
    def forwards_per_token(self) -> float:
        """Row forwards for each token generated: 1 for one token a step."""
        return self.forwards / max(1, self.revealed)


@torch.no_grad()
@kinds_checked
def generate(
    model: MaskedDiffusionLM,
    batch: TokenBatch,
    decoding: Decoding | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    end_token_id: int | None = None,
    suppress_tokens: Sequence[int] = (),
    on_step: OnStep | None = None,
) -> Generation:
    """Fill every maskable position of the rows, wherever they lie, in the order the policy chooses.

    The loop's books are kept on the CPU; the model runs where it is.

    Args:
        model: the denoiser. It is evaluated in the ambient autocast mode; statistics are fp32 (float64 stays).
        batch: the rows, of any lengths; what their maskable positions hold is not looked at. All of them take a
            step before any takes the next. Documents that are kept apart in a row do not see one another.
        decoding: how; by default the most confident position, one a step.
        seed: of the noise, a function of (seed, row, draw, position, step) alone.
        batch_size: rows of one forward; by default all. Rows of like length go together.
        end_token_id: the token that ends a text. A row leaves as soon as its text is complete, that is, an end stands
            in a maskable position and nothing before it can change any more: with remasking, once its block is
            full. What is masked behind it is filled with ends. The text is the one that decoding on would give.
            Documents that are kept apart end each by itself. None: every position is decoded.
        suppress_tokens: tokens that get no probability, as those of transformers' generate.
        on_step: called as (step, tokens [B, L], masked [B, L]) after each step: the trajectory. The tensors are
            the loop's own: clone what you keep.

    Returns:
        A `Generation`, on the rows' device.

    Raises:
        ValueError: for a maskable position in the padding, one that the model cannot predict, a row that is longer
            than it reads or holds what is no token of it, an end or suppressed tokens that are none or leave none, or
            scores that are not finite.
    """
    began = time.perf_counter()
    MaskedDiffusionLM.check(model)
    if not isinstance(batch, TokenBatch):
        raise TypeError(
            f"expected a TokenBatch, got {type(batch).__name__}: RowStream(dataset).rows(torch.arange(n)) makes "
            "one of a data set's first n rows"
        )
    if batch_size is not None:
        positive_int("batch_size", batch_size)
    _check_rows(model, batch)
    _check_tokens(model, end_token_id, suppress_tokens)
    loop = _Loop(model, batch.to("cpu"), decoding or Decoding(), seed, end_token_id, suppress_tokens)
    by_length = loop.batch.attention.sum(1).argsort(stable=True)
    step = forwards = 0
    with evaluating(model):
        while True:
            rows = by_length[loop.masked.any(1)[by_length]]  # finished rows leave
            if len(rows) == 0:
                break
            forwards += sum(loop.advance(part, step) for part in rows.split(batch_size or len(rows)))
            if on_step is not None:
                on_step(step, loop.tokens, loop.masked)
            step += 1
    tokens, steps, confidence = (x.to(batch.tokens.device) for x in (loop.tokens, loop.step_of, loop.confidence))
    return Generation(tokens, steps, confidence, forwards, time.perf_counter() - began)


def _check_rows(model: MaskedDiffusionLM, batch: TokenBatch) -> None:
    """Raise ValueError, naming the first one, for rows that the model cannot read."""
    require(not bool((batch.maskable & ~batch.attention).any()), "a position is maskable but not attended to")
    vocabulary, longest = model.head.vocab_size, model.longest_row
    given = batch.tokens.masked_fill(batch.maskable | ~batch.attention, 0)
    problems = {f"holds a token outside the vocabulary of {vocabulary}": (given < 0) | (given >= vocabulary)}
    if longest is not None:
        problems[f"is longer than the model's {longest} positions"] = batch.attention.sum(1, keepdim=True) > longest
    for what, where in problems.items():
        for row in batch.row[where.any(1)].tolist():
            raise ValueError(f"row {row} {what}")


def _check_tokens(model: MaskedDiffusionLM, end_token_id: int | None, suppress_tokens: Sequence[int]) -> None:
    """Raise ValueError for an end, or tokens to suppress, that the model does not predict, or no other token."""
    choices, known = ~model.head.excluded(model.mask_token_id), range(model.head.vocab_size)
    ends = end_token_id is None or (end_token_id in known and bool(choices[end_token_id]))
    require(ends, f"end_token_id {end_token_id} is no token of the model's")
    for token in suppress_tokens:
        require(token in known, f"suppress_tokens holds {token}, which is no token of the model's")
        choices[token] = False
    require(bool(choices.any()), "suppress_tokens leaves no token to predict")


class _Loop:
    """The state of all rows, and what one step does to some of them."""

    def __init__(
        self,
        model: MaskedDiffusionLM,
        batch: TokenBatch,
        decoding: Decoding,
        seed: int,
        end_token_id: int | None,
        suppress_tokens: Sequence[int],
    ) -> None:
        self.model, self.batch, self.decoding, self.seed = model, batch, decoding, seed
        self.device, self.end_token_id = model.device, end_token_id
        self.policy = resolve(decoding.policy)
        self.suppressed = torch.tensor(list(suppress_tokens), dtype=torch.int64).to(self.device)
        self.masked = batch.maskable.clone()
        self.tokens = batch.tokens.masked_fill(self.masked, model.mask_token_id)
        self.step_of = torch.full_like(self.tokens, -1)
        self.confidence = torch.ones(self.tokens.shape)
        self.block = torch.arange(batch.length) // (decoding.block_size or batch.length)
        self.current = torch.full((len(batch),), -1)  # [B] the block that each row is at ...
        self.clock = torch.zeros(len(batch), dtype=torch.int64)  # ... and the steps that it has had

    def advance(self, rows: Tensor, step: int) -> int:
        """Take one step with the rows [R], each of which has a masked position; return the forwards it cost."""
        decoding, masked = self.decoding, self.masked[rows]
        current = self.block.expand_as(masked).masked_fill(~masked, self.batch.length).amin(1)
        clock = torch.where(current == self.current[rows], self.clock[rows], 0)
        self.current[rows], self.clock[rows] = current, clock + 1
        inside = self.batch.maskable[rows] & (self.block == current[:, None])
        hidden, shown = inside & masked, inside & ~masked
        size, revealed = inside.sum(1), shown.sum(1)
        target = decoding.target(clock, revealed, size)
        again = torch.zeros_like(shown)
        if decoding.remasking > 0:
            u = self._uniforms(self.batch[rows], noise.Purpose.REMASK, step)
            chance = decoding.remasking_probability(revealed, target, size)[:, None]
            # No more of them than leave the target within reach.
            again = smallest(u, shown & (u < chance), (size - target)[:, None])
        count = target - revealed + again.sum(1)

        busy = count > 0  # the schedule may leave a step without work
        if not busy.any():
            return 0
        rows, hidden, again, current = rows[busy], hidden[busy], again[busy], current[busy]
        # Padding on the right, and blocks that nobody sees yet, need no columns.
        seen = self.batch.attention[rows].any(0)
        if decoding.causal_blocks:
            seen &= self.block <= current.amax()
        width = int(seen.nonzero().amax()) + 1
        here = self.batch[rows].map(lambda x: x[:, :width] if x.dim() == 2 else x)
        self._reveal(rows, here, hidden[:, :width], count[busy], step)
        # The forward saw them still: ReMDM's step goes from z_t to z_s.
        self.tokens[rows] = self.tokens[rows].masked_fill(again, self.model.mask_token_id)
        self.masked[rows] |= again
        if self.end_token_id is not None:
            self._end(rows, self.end_token_id)
        return len(rows)

    def _end(self, rows: Tensor, end_token_id: int) -> None:
        """Fill what is masked of the texts that are complete in the rows [R]: a row, or each of its documents."""
        maskable, masked = self.batch.maskable[rows], self.masked[rows]
        place, tokens = torch.arange(self.batch.length).expand_as(masked), self.tokens[rows]
        may_change = masked
        if self.decoding.remasking > 0:
            may_change = maskable & (self.block >= self.block.where(masked, self.batch.length).amin(1, keepdim=True))
        document = self.batch.document
        text = torch.zeros_like(place) if document is None else begins_of(document[rows]).cumsum(1)
        nowhere = torch.full((len(rows), int(text.max()) + 1), self.batch.length)
        end, open_ = (  # the first of each text
            nowhere.scatter_reduce(1, text, place.where(x, self.batch.length), "amin").gather(1, text)
            for x in (maskable & ~masked & (tokens == end_token_id), may_change)
        )
        rest = masked & (end < open_)
        self.tokens[rows] = tokens.masked_fill(rest, end_token_id)
        self.masked[rows] = masked & ~rest

    def _reveal(self, rows: Tensor, here: TokenBatch, hidden: Tensor, count: Tensor, step: int) -> None:
        """Reveal `count` [R] and more positions of `hidden` [R, W] in the rows, cut to W columns in `here`."""
        decoding, width = self.decoding, here.length
        tokens = self.tokens[rows, :width].masked_fill(~here.attention, 0)  # padding may be of any number, as -100
        draws = self._uniforms(here, noise.Purpose.SAMPLE, 2 * step)
        reveal = None
        if decoding.threshold is None and not needs_of(self.policy):  # the order is known without the model
            nothing = Scores(torch.zeros(hidden.shape))
            reveal = hidden = top(self.policy(nothing, draws), hidden, count)
        block = self.block[:width].expand_as(tokens) if decoding.causal_blocks else None
        limits = {"block": block, "document": here.document}
        limits = {name: x.to(self.device) for name, x in limits.items() if x is not None}
        seen = (x.to(self.device) for x in (tokens, here.attention, hidden))
        logits = self.model.predict(*seen, **limits).index_fill(-1, self.suppressed, -math.inf)
        found = Scores.from_logits(logits, needs=needs_of(self.policy)).to("cpu")
        if found.log_confidence.isnan().any():  # or, in an order that is known without them, any token would be drawn
            raise ValueError(f"the model's scores are not finite for rows among {here.row.tolist()[:8]}")
        scores = found.map(lambda v: v.new_zeros(hidden.shape).masked_scatter(hidden, v))
        if reveal is None:
            reveal = top(self.policy(scores, draws), hidden, count)
            if decoding.threshold is not None:
                reveal |= hidden & (scores.log_confidence > math.log(decoding.threshold))
        logits = logits[reveal[hidden].to(self.device)]
        if decoding.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            u = self._uniforms(here, noise.Purpose.SAMPLE, 2 * step + 1)[reveal]
            chosen = draw_tokens(logits, u, decoding.temperature, decoding.top_p)
        row, column = reveal.nonzero(as_tuple=True)
        at = (rows[row], column)
        self.tokens[at] = chosen.cpu()
        self.step_of[at] = step
        self.confidence[at] = scores.log_confidence[reveal].exp().float()
        self.masked[at] = False

    def _uniforms(self, here: TokenBatch, purpose: noise.Purpose, salt: int) -> Tensor:
        return noise.uniforms(self.seed, here.row, here.draw, here.length, purpose=purpose, salt=salt)

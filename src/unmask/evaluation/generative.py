"""Generative perplexity: how likely another model, a causal one, finds generated texts. Never on its own.

A sampler lowers it at will by repeating itself (Zheng et al. 2024, arXiv 2409.02908), so the number comes with the
diversity of the same texts and the settings that made them, in one value that cannot be built with one missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from unmask.batch import TokenBatch
from unmask.config import positive_int, require
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.estimate import Estimate, ratio
from unmask.evaluation.hashes import weights_hash
from unmask.evaluation.likelihood import RowNats
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.models.families import longest_row
from unmask.models.pretrained import located, read_model, unpacked
from unmask.models.verify import is_causal
from unmask.sampling import Decoding, generate


@dataclass(frozen=True)
class GenerativePerplexity:
    """A generative perplexity with all that it means nothing without.

    Attributes:
        perplexity: exp of the judge's nats per token of its own, over all texts, with a 95% interval over texts.
        unigram_entropy: nats, of the token frequencies within a text, mean over texts with a 95% interval. Low: it
            repeats itself.
        distinct: share of different n-grams among all n-grams of all texts, n = 1, 2, 3.
        temperature: of the sampling.
        steps: decoding steps taken.
        length: tokens of each text, at most: it stops at its end, and what follows is neither judged nor counted.
        texts: how many.
        unjudged: texts without a token that the judge could score: they ended at once.
        tokenizer: fingerprint of the generating model's tokenizer.
        judge: `weights_hash` of the judging model.
    """

    perplexity: Estimate
    unigram_entropy: Estimate
    distinct: tuple[float, float, float]
    temperature: float
    steps: int
    length: int
    texts: int
    unjudged: int
    tokenizer: str
    judge: str

    def __post_init__(self) -> None:
        missing = [f.name for f in fields(self) if getattr(self, f.name) in (None, "", ())]
        require(not missing, f"a generative perplexity means nothing without {', '.join(missing)}")
        numbers = (self.perplexity.value, self.unigram_entropy.value, *self.distinct, self.temperature)
        require(len(self.distinct) == 3 and all(map(math.isfinite, numbers)), f"not finite or not whole: {self}")


def generative_perplexity(
    model: MaskedDiffusionLM,
    tokenizer: TextTokenizer,
    judge: str | Path,
    *,
    texts: int = 64,
    length: int | None = None,
    decoding: Decoding | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda texts: None,
) -> tuple[GenerativePerplexity, list[str]]:
    """Generate texts from nothing and have them judged.

    Args:
        model: the denoiser.
        tokenizer: its tokenizer.
        judge: a folder (or Hugging Face name) of a causal language model with its own tokenizer.
        texts: how many, at least 2.
        length: tokens of each; None: see `text_length`.
        decoding: by default one token a step in random order at temperature 1: samples of the order mixture.
        seed: of the sampling.
        batch_size: texts at a time; changes no text.
        progress: called with the number of texts generated since the last call.

    Returns:
        The figures and the texts.
    """
    positive_int("texts", texts, least=2)
    positive_int("batch_size", batch_size)
    length = text_length(model, tokenizer) if length is None else length
    positive_int("length", length)
    decoding = decoding or Decoding(policy="random", temperature=1.0)
    opened = open_judge(judge)  # what is wrong with it is told before anything is generated
    tokens, steps = sample_tokens(model, tokenizer, texts, length, decoding, seed, batch_size, progress)
    rows = [until_end(row, tokenizer.end_token_id) for row in tokens]
    written = [tokenizer.decode(row.tolist()) for row in rows]
    rows = [row for row in rows if len(row)]
    nats, name = judge_texts(written, opened, batch_size, model.device)
    found = GenerativePerplexity(
        perplexity=nats.perplexity,
        unigram_entropy=unigram_entropy(rows),
        distinct=(distinct(rows, 1), distinct(rows, 2), distinct(rows, 3)),
        temperature=decoding.temperature,
        steps=steps,
        length=length,
        texts=texts,
        unjudged=int((nats.tokens == 0).sum()),
        tokenizer=tokenizer.fingerprint,
        judge=name,
    )
    return found, written


def text_length(model: MaskedDiffusionLM, tokenizer: TextTokenizer, rows: int | None = None) -> int:
    """Tokens of a text unless asked otherwise: 128, or less where rows are shorter that the model reads or learnt.

    Args:
        model: the denoiser; what stands before a text is of the row too.
        tokenizer: its tokenizer.
        rows: tokens of the rows that it was trained on; behind them it knows nothing.
    """
    before = len(beginning_of(model, tokenizer))
    return min(n for n in (rows, model.longest_row, 128 + before) if n) - before


def beginning_of(model: MaskedDiffusionLM, tokenizer: TextTokenizer) -> list[int]:
    """What is given before a text: the tokenizer's prefix, or for a shifted model, which cannot predict a row's first
    token, an end-of-text token, as where one text follows another."""
    return list(tokenizer.prefix) or [tokenizer.eos_token_id] * model.shifted


def sample_tokens(
    model: MaskedDiffusionLM,
    tokenizer: TextTokenizer,
    texts: int,
    length: int,
    decoding: Decoding,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda texts: None,
    prompt: Sequence[int] = (),
) -> tuple[Tensor, int]:
    """Generate [texts, length] tokens, each row beginning with the prompt's; also the most steps that a text took.

    A row stops at the end of its text; end-of-text tokens fill what is left of it.

    The tokenizer's prefix is given before the text and is no part of it. A shifted model without one is given an
    end-of-text token, unless there is a prompt.

    Raises:
        ValueError: for a tokenizer that does not belong to the model, or more tokens than it reads, or than are left
            to generate.
    """
    positive_int("batch_size", batch_size)
    model.check_tokenizer(tokenizer)
    before = list(tokenizer.prefix) if prompt else beginning_of(model, tokenizer)
    given, width = torch.tensor([*before, *prompt], dtype=torch.int64), len(before) + length
    longest = model.longest_row or width
    require(
        len(prompt) < length,
        f"the prompt has {len(prompt)} tokens, a text {length}: none is left to generate, ask for more (--length)",
    )
    require(width <= longest, f"a text of {length} tokens takes a row of {width}, the model reads {longest} tokens")
    device = model.device
    rows, steps = [], 0
    for row in torch.arange(texts).split(batch_size):
        batch = _beginning(row, width, given).to(device)
        made = generate(model, batch, decoding, seed=seed, **tokenizer.ends)
        rows.append(made.tokens[:, len(before) :].cpu())
        steps = max(steps, int(made.step.max()) + 1)
        progress(len(row))
    return torch.cat(rows), steps


class Judge(NamedTuple):
    """A causal language model and its tokenizer."""

    network: Any
    reader: Any


def open_reader(judge: str | Path) -> Any:
    """The judge's tokenizer, of a judge as for `open_judge`."""
    place, options = located(str(judge))
    return AutoTokenizer.from_pretrained(place, **options)


def open_judge(judge: str | Path) -> Judge:
    """The judge on the hub, in a folder, or package:NAME (see `unmask.models.pretrained.located`).

    Raises:
        ValueError: for one that is not there, or sees the tokens that it is to predict.
    """
    place, options = located(str(judge))
    reader = open_reader(judge)
    network = read_model(AutoModelForCausalLM, place, **unpacked(options)).eval()
    require(
        is_causal(network),
        f"{judge} sees the tokens that it is to predict: a judge is a causal model, no encoder, nor one "
        "that was made a denoiser",
    )
    return Judge(network, reader)


@torch.no_grad()
def judge_texts(
    texts: Sequence[str], judge: str | Path | Judge, batch_size: int = 16, device: torch.device | str = "cpu"
) -> tuple[RowNats, str]:
    """Nats of each text under a causal model, in the judge's own tokens, and the judge's `weights_hash`.

    The judge is as for `open_judge`, or what that returned. One with a BOS token scores every token; without, the
    first token of a text is given. A text of which nothing is scored has no nats.

    Raises:
        ValueError: for a text that is longer than the judge can read, where nothing of any text is scored, and as
            `open_judge` does.
    """
    positive_int("batch_size", batch_size)
    network, reader = judge if isinstance(judge, Judge) else open_judge(judge)
    network.to(device)
    start = [] if reader.bos_token_id is None else [reader.bos_token_id]
    rows = [torch.tensor(start + reader.encode(text, add_special_tokens=False)) for text in texts]
    longest = longest_row(network)
    require(any(len(row) >= 2 for row in rows), "no text has a token that the judge could score")
    for number, row in enumerate(rows):
        require(
            longest is None or len(row) <= longest,
            f"text {number} has {len(row)} of the judge's tokens, it reads {longest}: generate shorter ones",
        )
    nats = torch.zeros(len(rows), dtype=torch.float64)
    scored = torch.tensor([i for i, row in enumerate(rows) if len(row) >= 2])
    for part in scored.split(batch_size):
        some = [rows[i] for i in part.tolist()]
        given = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        real = torch.arange(given.shape[1]) < torch.tensor([len(row) for row in some])[:, None]
        logits = network(input_ids=given.to(device), attention_mask=real.long().to(device)).logits[:, :-1]
        nll = -logits.float().log_softmax(-1).cpu().gather(-1, given[:, 1:, None])[..., 0].double()
        nats[part] = (nll * real[:, 1:]).sum(1)
    tokens = torch.tensor([max(0, len(row) - 1) for row in rows])
    return RowNats("negative log-likelihood of a causal judge", nats, tokens), weights_hash(network)


def unigram_entropy(rows: Sequence[Tensor] | Tensor) -> Estimate:
    """Entropy in nats of the token frequencies within each row of tokens, mean over rows."""
    found = []
    for row in rows:
        share = torch.tensor(list(Counter(row.tolist()).values()), dtype=torch.float64) / len(row)
        found.append(-(share * share.log()).sum())
    return ratio(torch.stack(found), torch.ones(len(rows)))


def distinct(rows: Sequence[Tensor] | Tensor, n: int) -> float:
    """Share of different n-grams among all n-grams of rows of tokens; 0 where all rows are shorter than n."""
    grams = [row.unfold(0, n, 1) for row in rows if len(row) >= n]
    return len(torch.cat(grams).unique(dim=0)) / sum(map(len, grams)) if grams else 0.0


def until_end(row: Tensor, end_token_id: int | None) -> Tensor:
    """The tokens [n] of a row [L] before its first end, n ≤ L; all of them where nothing ends a text."""
    if end_token_id is None:
        return row
    ends = (row == end_token_id).nonzero()
    return row[: int(ends[0])] if len(ends) else row


def _beginning(row: Tensor, width: int, given: Tensor) -> TokenBatch:
    """Rows of which the first tokens are given."""
    tokens = torch.zeros(len(row), width, dtype=torch.int64)
    tokens[:, : len(given)] = given
    maskable = (torch.arange(width) >= len(given)).expand(len(row), -1)
    return TokenBatch(tokens, maskable, torch.ones_like(maskable), row, torch.zeros_like(row), torch.ones(len(row)))

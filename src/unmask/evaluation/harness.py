"""EleutherAI's `lm-eval` on a masked diffusion model (optional: pip install "unmask[harness]").

    from lm_eval import simple_evaluate
    from unmask.evaluation.harness import HarnessModel
    simple_evaluate(HarnessModel(model, tokenizer, max_length=256).as_lm(), tasks=["lambada_openai"])

Log-likelihoods are negative ELBOs: lower bounds, with noise that is a function of a request's place in the call. A
row is the context, given, and the continuation, masked; it begins with the tokenizer's prefix, such as BOS, unless a
chat template has written it. Text is generated at a fixed length, stops at the end-of-text
token, and is cut at the first stop.

At the seam of a pair, spaces that the context ends with go to the continuation, as lm-eval's own models have it. Then
both are tokenized by themselves, so that no token lies across the seam: the context has the tokens that it has when
nothing follows, which is what a model is shown that is to write the rest. (lm-eval's causal models tokenize the whole
and cut it after as many tokens as the context has alone; where a token lies across the seam, theirs differ.)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unmask.batch import TokenBatch
from unmask.config import positive_int, require
from unmask.data.stream import RowStream
from unmask.data.supervised import on_one_day
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.generative import beginning_of
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.models.denoiser import MaskedDiffusionLM
from unmask.sampling import Decoding, generate

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say how long an answer may be: those of lm-eval's `normalize_gen_kwargs`, in its order."""

READ = {"until", "do_sample", "temperature", "top_p", *LENGTHS}
"""Settings of a task that are followed."""

NOTHING = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "top_k": 0, "min_p": 0}
"""Settings that ask for nothing at these values."""

SAMPLING = {"top_k", "min_p", "typical_p"}
"""Settings that ask for nothing where tokens are not drawn."""


class Request(Protocol):
    """What is read of lm-eval's `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,) or (context, settings)."""
        ...


class HarnessModel:
    """The three methods that lm-eval asks of a model.

    Args:
        model: the denoiser.
        tokenizer: its tokenizer.
        max_length: tokens of a row; contexts are cut on the left.
        answer_length: tokens generated where a task does not say.
        config: how likelihoods are estimated.
        decoding: how text is generated; a task's temperature and top_p take the place of its own. What else a
            task asks for is warned of.
        batch_size: forwards at a time.
        chat: transformers' tokenizer of the same model, whose chat template serves lm-eval's `apply_chat_template`.

    Raises:
        ValueError: for a tokenizer that does not belong to the model, or rows that are longer than it reads.
    """

    def __init__(
        self,
        model: MaskedDiffusionLM,
        tokenizer: TextTokenizer,
        max_length: int,
        answer_length: int = 64,
        config: LikelihoodConfig | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 64,
        chat: PreTrainedTokenizerBase | None = None,
    ) -> None:
        positive_int("max_length", max_length, least=2)
        positive_int("answer_length", answer_length)
        positive_int("batch_size", batch_size)
        longest = model.longest_row or max_length
        require(max_length <= longest, f"max_length={max_length} is too long: the model reads {longest} tokens")
        model.check_tokenizer(tokenizer)
        self.model, self.tokenizer, self.max_length, self.answer_length = model, tokenizer, max_length, answer_length
        self.config, self.decoding = config or LikelihoodConfig(), decoding or Decoding()
        self.batch_size, self.chat = batch_size, chat
        self._told: set[str] = set()

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """(lower bound on the log-probability of the continuation in nats, whether decoding would write it)."""
        rows = [self._row(self._context(a), self._encode(b)) for a, b in (_seam(*r.args[:2]) for r in requests)]
        scored = [i for i, (_, given) in enumerate(rows) if not all(given)]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)  # nothing to predict: certain
        if scored:
            dataset = _dataset([rows[i] for i in scored])
            nats = self._nats(dataset)
            batch = RowStream(dataset).rows(torch.arange(len(dataset)))
            made = self._generate(batch, replace(self.decoding, temperature=0.0, top_p=1.0))
            written = ((made == batch.tokens) | ~batch.maskable).all(1).tolist()
            for i, value, same in zip(scored, nats, written, strict=True):
                found[i] = (-value, same)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Lower bound on the log-probability of each text; every token is scored once.

        A text longer than a row is scored in pieces, each after the first given half a row of what precedes it.
        """
        rows, owner = [], []
        for number, request in enumerate(requests):
            tokens = self._encode(request.args[0])
            start, room = 0, self._room
            while start < len(tokens):
                step = room if start == 0 else room - room // 2
                context = tokens[max(0, start - room // 2) : start]
                rows.append(self._row(context, tokens[start : start + step]))
                owner.append(number)
                start += step
        totals = [0.0] * len(requests)
        for number, value in zip(owner, self._nats(_dataset(rows)) if rows else [], strict=True):
            totals[number] -= value
        return totals

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Text after each context, cut at the first of its stops or at the end-of-text token."""
        rows, lengths, drawing, stops = [], [], [], []
        for request in requests:
            context, settings = self._context(request.args[0]), dict(request.args[1])
            # A long answer is shortened to half a row before the context is cut.
            room = max(self._room - len(context), self._room // 2)
            wanted = next((settings[name] for name in LENGTHS if settings.get(name) is not None), self.answer_length)
            lengths.append(min(int(wanted), room))
            rows.append(self._row(context, [self.tokenizer.eos_token_id] * lengths[-1]))
            drawing.append(self._decoding(settings))
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else until)
        made = [""] * len(rows)
        for decoding in dict.fromkeys(drawing):
            same = [i for i, other in enumerate(drawing) if other == decoding]
            batch = RowStream(_dataset(rows)).rows(torch.tensor(same))
            for i, tokens in zip(same, self._generate(batch, decoding).tolist(), strict=True):
                end = len(rows[i][0])
                made[i] = self._cut(tokens[end - lengths[i] : end], stops[i])
        return made

    def chat_template(self, name: bool | str = False) -> str | None:
        """The text of the chat template, or of the one of that name; None for False.

        Raises:
            ValueError: without a tokenizer that has one.
        """
        return None if name is False else self._chat.get_chat_template(None if name is True else name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the template writes it; without `add_generation_prompt` its last message goes on.

        Its date is that of `unmask.data.supervised.DAY`. Special tokens that the template writes are read as such.
        ValueError without a tokenizer that has one.
        """
        return self._chat.apply_chat_template(
            chat_history,
            chat_template=on_one_day(self._chat.get_chat_template()),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    @property
    def _chat(self) -> Any:
        if self.chat is None or not getattr(self.chat, "chat_template", None):
            raise ValueError(
                "chats need a chat template: give HarnessModel(chat=...) the tokenizer that unmask.from_pretrained "
                "returned"
            )
        return self.chat

    def as_lm(self) -> Any:
        """This model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate`.

        Raises:
            ValueError: where lm-eval is not installed.
        """
        try:
            from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError('lm-eval is not installed: pip install "unmask[harness]"') from None
        adapter = self

        class MaskedDiffusionHarness(LM):
            def loglikelihood(self, requests: Any) -> Any:
                return adapter.loglikelihood(requests)

            def loglikelihood_rolling(self, requests: Any) -> Any:
                return adapter.loglikelihood_rolling(requests)

            def generate_until(self, requests: Any) -> Any:
                return adapter.generate_until(requests)

            @property
            def tokenizer_name(self) -> str:
                return adapter.tokenizer.fingerprint

            def chat_template(self, chat_template: bool | str = False) -> str | None:
                return adapter.chat_template(chat_template)

            def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
                return adapter.apply_chat_template(chat_history, add_generation_prompt)

        return MaskedDiffusionHarness()

    @property
    def _room(self) -> int:
        """Tokens of a row besides what it begins with."""
        return self.max_length - len(self._first)

    @property
    def _first(self) -> list[int]:
        return beginning_of(self.model, self.tokenizer)

    def _encode(self, text: str) -> list[int]:
        """Tokens of a text; with a chat tokenizer special tokens are read as such, for its template writes them."""
        if self.chat is not None:
            return self.chat(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self.tokenizer.encode(text).tolist()

    def _context(self, text: str) -> list[int]:
        """Tokens of a context, without the prefix if a chat template has written it: every row begins with it."""
        tokens, prefix = self._encode(text), self.tokenizer.prefix
        return tokens[len(prefix) :] if tuple(tokens[: len(prefix)]) == prefix else tokens

    def _row(self, context: list[int], scored: list[int]) -> tuple[list[int], list[bool]]:
        """Tokens of a row, and which of them are given; the context loses its beginning where there is no room."""
        require(
            len(scored) <= self._room,
            f"a continuation of {len(scored)} tokens does not fit into rows of {self.max_length}: raise max_length",
        )
        kept = context[max(0, len(context) - (self._room - len(scored))) :]
        first = self._first
        return first + kept + scored, [True] * len(first + kept) + [False] * len(scored)

    def _nats(self, dataset: Dataset) -> list[float]:
        return likelihood(self.model, dataset, self.config, batch_size=self.batch_size).nats.tolist()

    def _generate(self, batch: TokenBatch, decoding: Decoding) -> Tensor:
        device = self.model.device
        made = generate(self.model, batch.to(device), decoding, batch_size=self.batch_size, **self.tokenizer.ends)
        return made.tokens.cpu()

    def _decoding(self, settings: dict[str, Any]) -> Decoding:
        """Decoding as a task's settings have it; warns, once, of what they ask for in vain."""

        def said(name: str) -> Any:
            own = getattr(self.decoding, name)
            return own if settings.get(name) is None else settings[name]

        temperature = float(said("temperature")) if settings.get("do_sample") is not False else 0.0
        greedy = temperature == 0
        for name, value in settings.items():
            idle = name in READ or value is None or value == NOTHING.get(name) or (greedy and name in SAMPLING)
            if not idle and f"{name}={value}" not in self._told:
                self._told.add(f"{name}={value}")
                warnings.warn(f"a task asks for {name}={value}, which decoding has not: it is left out", stacklevel=3)
        return replace(self.decoding, temperature=temperature, top_p=1.0 if greedy else float(said("top_p")))

    def _cut(self, tokens: list[int], stops: Sequence[str]) -> str:
        text = self.tokenizer.first_text(tokens)
        ends = [text.index(stop) for stop in stops if stop and stop in text]
        return text[: min(ends, default=len(text))]


def _seam(context: str, continuation: str) -> tuple[str, str]:
    """The pair, with the spaces at the context's end moved to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _dataset(rows: list[tuple[list[int], list[bool]]]) -> Dataset:
    return Dataset.from_dict(
        {"tokens": [tokens for tokens, _ in rows], "maskable": [[not g for g in given] for _, given in rows]}
    )

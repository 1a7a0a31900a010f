"""Autoregressive models of the same size: where masked models may start from, and a control without masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from unmask import RowStream, TokenBatch
from unmask.data import TextTokenizer
from unmask.evaluation.estimate import bootstrap
from unmask.evaluation.tasks import AnswerTask
from unmask.recipes import TextModel


def build(model: TextModel) -> LlamaForCausalLM:
    """The body of a `TextModel` with its causal mask."""
    config = model.build().config
    assert isinstance(config, LlamaConfig)
    config.is_causal = True
    return LlamaForCausalLM(config)


def loss(model: LlamaForCausalLM, batch: TokenBatch) -> Tensor:
    """Mean nll in nats of the tokens that are learnt."""
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention.long()).logits[:, :-1].float()
    nll = F.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
    learnt = batch.maskable[:, 1:]
    return (nll * learnt).sum() / learnt.sum()


def train(
    model: LlamaForCausalLM,
    rows: Dataset,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    warmup: float = 0.05,
    every: int | None = None,
    evaluate: Callable[[LlamaForCausalLM], dict[str, Any]] = lambda model: {},
) -> list[dict[str, Any]]:
    """Train with AdamW, warm-up and cosine, under bf16 autocast; return the curve.

    The masked models' trainer differs in little: its cosine begins after the warm-up, and it decays no vectors.
    """
    stream, curve = RowStream(rows, seed), []
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (warmup * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    for step in range(1, steps + 1):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(model, stream.take(batch_size))
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if every and (step % every == 0 or step == steps):
            curve.append({"step": step, "loss": found.item(), **evaluate(model.eval())})
    return curve


@torch.no_grad()
def solved(model: LlamaForCausalLM, task: AnswerTask, questions: Dataset) -> float:
    """Share of right answers, decoded greedily."""
    tokenizer, answers = TextTokenizer.load(task.tokenizer), []
    end = tokenizer.eos_token_id
    for at in range(0, len(questions), task.batch_size):
        part = questions[at : at + task.batch_size]
        pairs = zip(part["tokens"], part["maskable"], strict=True)
        prompts = [[t for t, answer in zip(*pair, strict=True) if not answer] for pair in pairs]
        width = max(map(len, prompts))
        tokens = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts])
        attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = model.generate(
            input_ids=tokens,
            attention_mask=attention,
            max_new_tokens=task.answer_length,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        for row in made[:, width:].tolist():
            answers.append(tokenizer.decode(row[: row.index(end)] if end in row else row))
    right = task.judge(answers, questions)
    return sum(right) / len(right)


def row_variance(model: LlamaForCausalLM, rows: Dataset, batch_size: int, row_sets: int, seed: int) -> dict[str, Any]:
    """C of the gradient, which is all the noise there is: variance over batches times their rows, and the signal.

    The estimates of `unmask.evaluation.variance`, with nothing drawn but rows. The loss is a mean over the batch's
    learnt tokens, whose number varies a little.
    """
    stream, gradients = RowStream(rows, seed), []
    parameters = list(model.parameters())
    model.eval()
    for _ in range(row_sets):
        found = torch.autograd.grad(loss(model, stream.take(batch_size)), parameters)
        gradients.append(torch.cat([g.flatten() for g in found]))
    stacked = torch.stack(gradients)
    gram = (stacked @ stacked.T).double()

    def spread(index: Tensor) -> Tensor:
        n, times = len(index), torch.bincount(index, minlength=row_sets).double()
        return (n * (times @ gram.diagonal()) - times @ gram @ times) / (n**2 - times @ times).clamp(min=1)

    every = torch.arange(row_sets)
    signal = (gram.sum() / row_sets - spread(every)) / row_sets
    rows_part = bootstrap(lambda index: batch_size * spread(index), row_sets, seed)
    return {"rows": asdict(rows_part), "signal": float(signal)}


def save(model: LlamaForCausalLM, tokenizer: TextTokenizer, folder: Path) -> Path:
    """Write the folder that `unmask.from_pretrained` opens."""
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder

"""Multiple choice: the most likely answer is the model's, by its likelihood given the question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from unmask.config import require
from unmask.data.tokenizers import TextTokenizer
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.evaluation.tasks.base import Task, shares
from unmask.evaluation.tasks.text import check_prompt, prompt_tokens, read_rows
from unmask.models.denoiser import MaskedDiffusionLM


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(Task):
    """Choose among given answers by estimated likelihood.

    The likelihood is a bound, the negative ELBO, estimated from masks that are drawn anew for every choice: raise
    `likelihood.samples` where choices are close.

    Attributes:
        tokenizer: folder with tokenizer.json and tokenizer_config.json, as training used it.
        source: a JSON Lines file, or the name of a Hugging Face data set.
        subset: of the Hugging Face data set.
        split: of the Hugging Face data set.
        columns: of the question, the list of choices and the place of the right one in it, from 0.
        stratum: column of strata, or None.
        prompt: what precedes each choice, with "{question}" in it.
        per: "row" compares log-likelihoods, "token" and "character" divide them by the choice's length.
        likelihood: how likelihoods are estimated.
    """

    tokenizer: str
    source: str
    subset: str | None = None
    split: str = "test"
    columns: tuple[str, str, str] = ("question", "choices", "answer")
    stratum: str | None = None
    prompt: str = "{question}\n"
    per: Literal["row", "token", "character"] = "row"
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt)

    def load(self, limit: int | None = None) -> Dataset:
        """One row for each choice, the choice maskable; `limit` counts questions.

        Raises:
            ValueError: for a question without two choices, an empty one, or a right one that is not among them.
        """
        tokenizer, rows = TextTokenizer.load(self.tokenizer), []
        columns = (*self.columns, *([self.stratum] if self.stratum else []))
        questions = read_rows(self.source, self.subset, self.split, columns, limit)
        for number, row in enumerate(questions.to_list()):
            question, choices, answer = (row[name] for name in self.columns)
            texts = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
            places = [place for place in range(len(choices)) if answer in (place, str(place))] if texts else []
            require(
                len(places) == 1 and len(choices) > 1,
                f"row {number} of {self.source} needs two choices or more, a list of texts, and the place of the "
                f"right one, from 0; got {choices!r} and {answer!r}",
            )
            shown = prompt_tokens(tokenizer, self.prompt, question)
            for place, choice in enumerate(choices):
                tokens = tokenizer.encode(choice).tolist()
                rows.append(
                    {
                        "tokens": shown + tokens,
                        "maskable": [False] * len(shown) + [True] * len(tokens),
                        "question": number,
                        "right": place == places[0],
                        "length": {"row": 1, "token": len(tokens), "character": len(choice)}[self.per],
                        "stratum": str(row[self.stratum]) if self.stratum else "all",
                    }
                )
        require(len(rows) > 0, "there is no question")
        return Dataset.from_list(rows)

    def evaluate(self, model: MaskedDiffusionLM, dataset: Dataset) -> dict[str, Any]:
        """Choose for every question of a data set that `load` made.

        Returns:
            "solved": share, "interval": its 95% Wilson interval, "puzzles": n, "strata": the same three
            for each stratum, "loss": nats for each token of the right choices.
        """
        found = likelihood(model, dataset, self.likelihood, batch_size=self.batch_size)
        nats, tokens = found.nats.numpy(), found.tokens.numpy()
        question, right, length, stratum = (np.array(dataset[n]) for n in ("question", "right", "length", "stratum"))
        first = np.searchsorted(question, np.unique(question))
        best = np.minimum.reduceat(nats / length, first)
        chosen = nats / length == best[question]
        # Of equally likely choices the first counts.
        places = [
            start + int(chosen[start:end].argmax()) for start, end in zip(first, [*first[1:], None], strict=True)
        ]
        return {**shares(right[places], stratum[first]), "loss": float(nats[right].sum() / tokens[right].sum())}

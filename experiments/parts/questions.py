"""Questions and worked answers of reasoning-gym, as text of small models: what is asked, and how it is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import reasoning_gym
from datasets import Dataset

from unmask.data import TextTokenizer, character_tokenizer, prompt_rows
from unmask.data.endings import Ending
from unmask.evaluation.tasks import AnswerTask
from unmask.sampling import Decoding

TEXT = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {"max_terms": 3, "max_digits": 2},
    "simple_equations": {"max_terms": 2, "max_value": 20},
    "spell_backward": {"max_word_len": 10},
}
"""What models are pretrained on: short questions, each with its answer alone."""
PROMPT = "{question}\n"
APART = 1_000_000
"""Between the seeds given to reasoning-gym: its question i of seed s is its question i - 1 of seed s + 1."""


def chain_sums(count: int, seed: int, terms: int) -> list[dict[str, str]]:
    """Sums and differences of digits with every step: "9 + 3 - 4 =", "9+3=12 12-4=8"."""
    made = reasoning_gym.create_dataset(
        "chain_sum", size=count, seed=seed * APART, min_terms=terms, max_terms=terms, min_digits=1, max_digits=1
    )
    examples = []
    for entry in made:
        question = entry["question"].rpartition(": ")[2]
        first, *rest = question.removesuffix("=").split()
        value, steps = int(first), []
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            after = value + int(term) if sign == "+" else value - int(term)
            steps.append(f"{value}{sign}{term}={after}")
            value = after
        assert str(value) == entry["answer"]
        examples.append({"question": question.rjust(lengths(terms)[0]), "answer": " ".join(steps)})
    return examples


def lengths(terms: int) -> tuple[int, int]:
    """Characters of a chain sum, filled up so that all rows are laid out alike, and of its worked answer and end."""
    return 4 * terms - 1, 10 * terms - 14


def word_problems(count: int, seed: int) -> list[dict[str, str]]:
    """gsm_symbolic: school mathematics in words, worked to the line "#### answer"."""
    made = reasoning_gym.create_dataset("gsm_symbolic", size=count, seed=seed * APART)
    return [{"question": entry["question"], "answer": entry["metadata"]["answer_cot"]} for entry in made]


def short_questions(count: int, seed: int) -> list[dict[str, str]]:
    """Of the data sets of TEXT in turn."""
    gyms = [
        reasoning_gym.create_dataset(name, size=-(-count // len(TEXT)), seed=seed * APART, **settings)
        for name, settings in TEXT.items()
    ]
    entries = (gyms[number % len(gyms)][number // len(gyms)] for number in range(count))
    return [{"question": entry["question"], "answer": str(entry["answer"])} for entry in entries]


def alphabet() -> TextTokenizer:
    """One token for each character of reasoning-gym's questions and answers, in ASCII and what gsm_symbolic adds."""
    printable = "".join(map(chr, range(32, 127))) + "\n€£¥•×÷₹−–’"
    return character_tokenizer([printable])


def rows(examples: list[dict[str, str]], tokenizer: TextTokenizer, length: int, ending: Ending) -> Dataset:
    """Rows of at most `length` tokens whose answer is learnt; longer ones are left out."""
    return prompt_rows(
        Dataset.from_list(examples), tokenizer, length=length, prompt=PROMPT, response="{answer}", ending=ending
    )


def task(
    examples: list[dict[str, str]], tokenizer: TextTokenizer, folder: Path, answer_length: int, **settings: Any
) -> AnswerTask:
    """A task that asks these questions; its files lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    source = folder / "questions.jsonl"
    source.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    settings = {"puzzles": len(examples), "final_puzzles": len(examples), "decoding": Decoding(), **settings}
    return AnswerTask(
        source=str(source), tokenizer=str(folder), prompt=PROMPT, answer_length=answer_length, **settings
    )

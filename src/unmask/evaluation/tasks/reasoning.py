"""Tasks of the `reasoning-gym` library (optional: pip install "unmask[reasoning]"), judged by its own scorers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from unmask.config import nearest, require
from unmask.evaluation.tasks.text import TextTask


@dataclass(frozen=True, kw_only=True)
class ReasoningTask(TextTask):
    """Questions that reasoning-gym makes; an answer counts if its scorer gives it full marks. Strata are the names.

    Attributes:
        names: of its data sets, such as "basic_arithmetic"; questions are taken from them in turn.
        seed: of the questions.
    """

    names: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.names) > 0, "names must hold at least one data set of reasoning-gym")

    def examples(self, limit: int | None) -> Iterable[dict[str, Any]]:
        """Questions of the data sets in turn, as many as asked for; by default `final_puzzles`."""
        gyms = self._gyms()
        for number in range(self.final_puzzles if limit is None else limit):
            which, entry = number % len(gyms), number // len(gyms)
            made = gyms[which][entry]
            yield {
                "question": made["question"],
                "answer": "" if made["answer"] is None else str(made["answer"]),
                "stratum": self.names[which],
                "number": number,
            }

    def judge(self, answers: list[str], dataset: Dataset) -> list[bool]:
        """The library's score of the answer is 1."""
        gyms, right = self._gyms(), []
        for answer, number in zip(answers, dataset["number"], strict=True):
            gym = gyms[number % len(gyms)]
            right.append(gym.score_answer(answer=answer, entry=gym[number // len(gyms)]) >= 1)
        return right

    def _gyms(self) -> list[Any]:
        """The data sets, each as long as any evaluation needs, so that a number names the same question in all.

        Raises:
            ValueError: where the library is not installed or does not know a name.
        """
        try:
            import reasoning_gym  # pyright: ignore[reportMissingImports]
            from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError('reasoning-gym is not installed: pip install "unmask[reasoning]"') from None
        for name in self.names:
            require(name in DATASETS, f"reasoning-gym has no data set '{name}'{nearest(name, DATASETS)}")
        size = -(-max(self.puzzles, self.final_puzzles) // len(self.names))
        return [reasoning_gym.create_dataset(name, size=size, seed=self.seed) for name in self.names]

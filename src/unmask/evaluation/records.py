"""Records: a number with its interval, and everything that must be equal for two numbers to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.config import differences, require
from unmask.evaluation.estimate import Estimate
from unmask.store.files import replace_text

FORMAT = "unmask-records-1"


@dataclass(frozen=True)
class Protocol:
    """What a number was measured with. Numbers compare where all but the checkpoint is equal.

    Attributes:
        settings: of the measurement, as `to_json` gives them.
        data: `data_hash` of the rows.
        tokenizer: `TextTokenizer.fingerprint`, or None for rows that come from no text.
        checkpoint: `weights_hash` of the model.
        version: of unmask.
    """

    settings: dict[str, Any]
    data: str
    tokenizer: str | None
    checkpoint: str
    version: str


@dataclass(frozen=True)
class Record:
    """One number.

    Attributes:
        name: what it is, with its unit: "bits per token".
        model: whose it is, for people; the protocol's checkpoint says it exactly.
        value: the number.
        low: lower end of its 95% interval.
        high: upper end.
        n: independent units that the interval is over (rows, puzzles).
        protocol: how it was measured.
    """

    name: str
    model: str
    value: float
    low: float
    high: float
    n: int
    protocol: Protocol

    def __post_init__(self) -> None:
        require(
            self.low <= self.value <= self.high and self.n >= 1,
            f"{self.name}: {self.value} with interval ({self.low}, {self.high}) over {self.n} units is no record",
        )

    @classmethod
    def of(cls, name: str, model: str, estimate: Estimate, n: int, protocol: Protocol) -> Record:
        """A record of an estimate."""
        return cls(name, model, estimate.value, estimate.low, estimate.high, n, protocol)


def save_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {"format": FORMAT, "records": [asdict(record) for record in records]}
    replace_text(path, json.dumps(saved, indent=2) + "\n")


def load_records(path: str | Path) -> list[Record]:
    """Read what `save_records` wrote.

    Raises:
        ValueError: for a file that holds no records.
    """
    try:
        saved = json.loads(Path(path).read_text())
        require(saved["format"] == FORMAT, f"format {saved['format']!r}")
        return [Record(**item | {"protocol": Protocol(**item["protocol"])}) for item in saved["records"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no records of this version of unmask: {error}") from None


def mismatches(records: Iterable[Record]) -> list[str]:
    """In which fields the protocols differ, as "a.b: 1 -> 2", the checkpoint aside; empty where they compare."""
    protocols = [asdict(record.protocol) | {"checkpoint": ""} for record in records]
    found: dict[str, None] = {}  # in order, each once
    for protocol in protocols[1:]:
        found |= dict.fromkeys(differences(protocols[0], protocol))
    return list(found)

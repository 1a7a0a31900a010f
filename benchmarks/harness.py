"""What the cases share: timing in turn, processes of their own, and the record that each case leaves.

Machines drift, so variants run in turn, round after round, and figures are medians: a ratio within one run means
something where two runs' milliseconds do not.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import unmask

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """What a case found: its settings, one dict a row with the columns as keys, and what the figures mean."""

    settings: dict[str, Any]
    rows: list[dict[str, Cell]]
    note: str

    def markdown(self) -> str:
        """The rows as a Markdown table, figures with three significant digits."""
        columns = list(self.rows[0])
        lines = [columns, ["---"] * len(columns), *([_shown(row[name]) for name in columns] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(cell: Cell) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:#.3g}"


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, settle: int = 1
) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each variant, in turn, after `settle` rounds that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-settle, repeats):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


_call: Callable[[], object]
_state_bytes: int


def _start(threads: int, build: Callable[..., Any], *arguments: Any) -> None:
    global _call, _state_bytes
    torch.set_num_threads(threads)
    _call, _state_bytes = build(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here


def _timed() -> float:
    began = time.perf_counter()
    _call()
    return time.perf_counter() - began


def _peak_above_state() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0]) - _state_bytes


def in_processes(
    variants: Mapping[str, tuple[Any, ...]], repeats: int, settle: int = 1
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, int]]:
    """As `interleaved`, with a process of its own for each variant, so that none sees another's allocator.

    Args:
        variants: by name a function and its arguments; it is called in the new process and returns the step and
            the bytes that the process must hold in any case. Peaks are counted from there on.
        repeats: timed steps of each.
        settle: steps of each before them. A process takes some ten steps to gather the memory that it then reuses.

    Returns:
        Seconds of the steps, of each variant's first step, which is not among them, and by how many bytes each
        process's resident memory rose above those.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    first: dict[str, float] = {}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, context, initializer=_start, initargs=(torch.get_num_threads(), *variant))
            )
            for name, variant in variants.items()
        }
        for turn in range(-settle, repeats):
            for name, pool in pools.items():
                took = pool.submit(_timed).result()
                if turn == -settle:
                    first[name] = took
                if turn >= 0:
                    seconds[name].append(took)
        return seconds, first, {name: pool.submit(_peak_above_state).result() for name, pool in pools.items()}


def median_ms(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * statistics.median(seconds)


def processor() -> str:
    """The processor's name with the instructions that matter for bf16."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return " ".join([fields.get("model name", platform.machine()), *flags])


def record(name: str, question: str, table: Table, repeats: int, folder: Path) -> str:
    """Write NAME.json and NAME.md into the folder, and return the text of the second."""
    machine = {"processor": processor(), "threads": torch.get_num_threads()}
    packages = (unmask, torch, transformers)
    versions = {"python": platform.python_version(), **{p.__name__: str(p.__version__) for p in packages}}
    saved = {"case": name, "machine": machine, "versions": versions, "repeats": repeats, **asdict(table)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(saved, indent=2) + "\n")
    facts = [f"{key} {value}" for key, value in (*machine.items(), *versions.items(), ("repeats", repeats))]
    text = f"# {question}\n\n{table.markdown()}\n\n{table.note}\n\n{', '.join(facts)}\n"
    (folder / f"{name}.md").write_text(text)
    return text

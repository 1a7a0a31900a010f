"""Measure speed and memory on this machine, case by case.

python -m benchmarks                  # all cases: about ten minutes on two cores
python -m benchmarks step matmul      # these alone
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import (
    attention,
    blocks,
    decoding,
    harness,
    large,
    launches,
    loading,
    masking,
    matmul,
    processes,
    scaling,
    step,
)

CASES = {
    "step": step,
    "large": large,
    "scaling": scaling,
    "processes": processes,
    "matmul": matmul,
    "attention": attention,
    "blocks": blocks,
    "loading": loading,
    "masking": masking,
    "launches": launches,
    "decoding": decoding,
}
"""A case is a module: its first line is the question, `measure(repeats)` the answer, `REPEATS` the usual number."""


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, help="timed rounds; by default the case's own number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the records")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    for name in options.cases or CASES:
        case = CASES[name]
        repeats = options.repeats or case.REPEATS
        print(harness.record(name, case.__doc__.splitlines()[0], case.measure(repeats), repeats, options.out))


if __name__ == "__main__":
    main()

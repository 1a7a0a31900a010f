"""What can a sampler of rates or masks remove from the gradient's noise? Measured rate by rate.

    python experiments/variance/limits.py --task sudoku       # about 2 minutes on one thread

At each rate t, gradients G of one row's 1/t-weighted loss under exact counts are taken for several rows, crossed
with several fields of uniforms, and for each field u its mirror 1 - u. Then

    A(t) = E_row tr Var_field[G | row, t]                 which positions are masked,
    main(t) = tr Var_field(E_row[G | field, t])           the part of A that all rows share,
    pair(t) = E_row Cov_field[G(u), G(1 - u) | row, t]    for t ≤ 1/2: of two masks that do not overlap.

For any density p of the rates, independent masks have A = ∫ A(t) / p(t) dt ≥ (∫ √A(t) dt)² (Cauchy and Schwarz):
the best that rates can do. Coupling masks across rows can remove main(t) alone. Coupling two masks of one row
gives A(t) + pair(t), at the price of half as many rows. All estimators are unbiased for any numbers of rows and
fields; intervals are bootstrapped over replicates. Writes records/TASK-limits.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from models import MODELS

from unmask import ELBO, ExactCount, IndependentMasking, RowStream
from unmask.processes.refit import evaluation_field, loss_and_gradient

HERE = Path(__file__).parent
PARTS = ("A", "main", "pair", "rows", "second")


def moments(model, stream: RowStream, t: float, size: int, seed: int) -> list[float]:
    """A, main, pair, variance between rows, and mean square, of the gradients of size rows x size fields."""
    masking, index = IndependentMasking(mask=ExactCount()), torch.arange(size)
    clean = stream.take(size)
    field = evaluation_field(seed, stream.rows(index), 0)  # one for each column of the design
    rate = torch.full((size,), t, dtype=torch.float64)
    squares, pairs, crossed = 0.0, 0.0, 0.0
    row_sums, column_sums = [], [0.0] * size
    for r in range(size):
        own = clean[torch.full((size,), r)]
        batches = [masking.assemble(own, rate, masking.time, u, None) for u in (field, 1 - field)]
        total, mirrored, pair = 0.0, 0.0, 0.0
        for m in range(size):
            one, two = (loss_and_gradient(model, batch[m : m + 1], ELBO())[1] for batch in batches)
            total, mirrored, column_sums[m] = total + one, mirrored + two, column_sums[m] + one
            squares += float(one @ one)
            pair += float(one @ two)
        row_sums.append(total)
        pairs += pair / size
        crossed += (float(total @ mirrored) - pair) / (size * (size - 1))
    n = size
    grand = sum(row_sums)
    centre = float(grand @ grand) / n**2
    by_row = sum(float(s @ s) for s in row_sums) / n - centre
    by_field = sum(float(s @ s) for s in column_sums) / n - centre
    both = (squares - centre - by_row - by_field) / (n - 1) ** 2
    main, rows = ((x / (n - 1) - both) / n for x in (by_field, by_row))
    return [main + both, main, (pairs - crossed) / n, rows, squares / n**2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=MODELS, required=True)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the model that is measured")
    parser.add_argument("--rates", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=6)
    parser.add_argument("--size", type=int, default=6, help="rows, and fields, of a replicate")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data = MODELS[options.task](options.steps, options.threads)
    model.eval()
    rates = (np.arange(options.rates) + 0.5) / options.rates
    stream = RowStream(data, 3)
    found = np.array(
        [
            [moments(model, stream, float(t), options.size, 1000 * k + i) for i, t in enumerate(rates)]
            for k in range(options.replicates)
        ]
    )  # [replicates, rates, parts]

    def summary(sample: np.ndarray) -> dict[str, float]:
        by_rate = dict(zip(PARTS, sample.mean(0).T, strict=True))
        a, low = by_rate["A"], rates < 0.5
        return {
            "best rates: (∫ √A)² / ∫ A": float(np.sqrt(a.clip(0)).mean() ** 2 / a.mean()),
            "best rates, mean square: (∫ √E|G|²)² / ∫ E|G|²": float(
                np.sqrt(by_rate["second"]).mean() ** 2 / by_rate["second"].mean()
            ),
            "shared by all rows: ∫ main / ∫ A": float(by_rate["main"].mean() / a.mean()),
            "disjoint pairs, t < 1/2: ∫ pair / ∫ A": float(by_rate["pair"][low].mean() / a[low].mean()),
            "mirrored pairs, all t: ∫ pair / ∫ A": float(by_rate["pair"].mean() / a.mean()),
        }

    random = np.random.default_rng(0)
    resamples = [summary(found[random.integers(0, len(found), len(found))]) for _ in range(1000)]
    record = {"task": options.task, "options": vars(options), "rates": rates.tolist()}
    record["by_rate"] = {part: found[..., i].mean(0).tolist() for i, part in enumerate(PARTS)}
    record["summary"] = {}
    for name, value in summary(found).items():
        low, high = np.quantile([sample[name] for sample in resamples], [0.025, 0.975])
        record["summary"][name] = {"value": value, "low": float(low), "high": float(high)}
        print(f"{name:<50} {value:7.3f}   ({low:.3f} to {high:.3f})")
    for part, values in record["by_rate"].items():
        print(f"{part:<8}" + " ".join(f"{value:8.4f}" for value in values))
    (HERE / "records" / f"{options.task}-limits.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

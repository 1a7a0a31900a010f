"""Tables of evaluation records and of variances, from saved records only."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.config import require
from unmask.evaluation.decomposition import Decomposition
from unmask.evaluation.estimate import Estimate
from unmask.evaluation.records import Record, mismatches
from unmask.report.grid import Grid


def records_grid(records: Sequence[Record], title: str = "") -> Grid:
    """One line for each number, one column for each model.

    Numbers of different protocols do not compare, so the note says in what the protocols differ.

    Raises:
        ValueError: for no record, or two records of one model under one name.
    """
    require(len(records) > 0, "there is no record to show")
    models, names = (list(dict.fromkeys(getattr(r, f) for r in records)) for f in ("model", "name"))
    cells = {(r.name, r.model): r for r in records}
    require(len(cells) == len(records), "two records of one model have the same name: give their models other names")
    found = mismatches(records)
    note = f"DO NOT COMPARE: protocols differ in {'; '.join(found)}" if found else "one protocol; 95% intervals"
    rows = [[name, *(_cell(cells.get((name, model))) for model in models)] for name in names]
    return Grid(title, ["", *models], rows, note)


def variance_grid(arms: dict[str, dict[str, Decomposition]], of: str) -> Grid:
    """A, B and C of each arm, as shares of the first arm's total, with 95% intervals.

    Args:
        arms: by name, what `decompose` returned.
        of: "loss" or "gradient".
    """
    first = next(iter(arms))
    unit = arms[first][of].parts
    rows = []
    for name, parts in arms.items():
        d = parts[of]
        rows.append(
            [
                name,
                _estimate(d.masks, unit),
                _estimate(d.rates, unit),
                f"{(d.masks.value + d.rates.value) / unit:.3f}",
                _estimate(d.rows, unit),
                f"{d.parts / unit:.3f}",
                _estimate(d.total, unit),
                f"{d.over_signal:.3g}",
            ]
        )
    head = ["arm", "A masks", "B rates", "A + B", "C rows", "A + B + C", "total, apart", "over the squared mean"]
    return Grid(f"variance of the {of} at equal forwards ({first} = 1, 95% interval)", head, rows)


def _estimate(estimate: Estimate, unit: float) -> str:
    return f"{estimate.value / unit:.3f}\n{estimate.low / unit:.2f} to {estimate.high / unit:.2f}"


def _cell(record: Record | None) -> str:
    return "" if record is None else f"{record.value:.4g} ({record.low:.4g} to {record.high:.4g}), n={record.n}"

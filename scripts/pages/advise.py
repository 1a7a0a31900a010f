"""How often is `unmask advise` right? Its rule, replayed on the saved studies (`unmask.evaluation.replay`).

    python -m scripts.pages.advise

Seeds that chose a study's settings are replayed too. Puts the table into docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts.pages.publish import DOCS, EXPERIMENTS, publish
from unmask.evaluation.replay import Comparison, Replayed, comparisons_of, replay
from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.report.grid import Grid

SHARES = (0.1, 0.2, 0.3, 0.5)


def saved() -> list[Comparison]:
    """Of all studies whose records are here."""
    found = []
    for path in sorted(EXPERIMENTS.rglob(RECORDS)):
        try:
            roles = [read_records(path, role) for role in ("compare", "screen")]
        except ValueError:
            continue  # records of something else
        found += [one for records in roles if records for one in comparisons_of(Results.of(records))]
    return found


def cells(found: Sequence[Replayed]) -> list[str]:
    """How many of the probes advised the best arm, and one within noise of it."""
    counts = (sum(probe.is_best for probe in found), sum(probe.is_near for probe in found))
    return [f"{count} of {len(found)}" if found else "" for count in counts]


def main() -> None:
    """Replay and publish."""
    every, rows = saved(), []
    for share in SHARES:
        for single in (True, False):
            found = [probe for one in every for probe in replay(one, share, single=single)]
            sure = [probe for probe in found if probe.advice.sure]
            first = [f"{share:.0%}" if single else "", "one seed" if single else "all seeds", str(len(found))]
            rows.append([*first, *cells(found), str(len(sure)), *cells(sure)])
    head = ["of the steps seen", "probe", "probes", "advised arm is best at the end", "or within noise of the best"]
    grid = Grid("", [*head, "sure", "of these best", "or within noise"], rows)
    probes = [one for one in every for _ in one.seeds]
    guess = sum(1 / len(one.arms) for one in probes) / len(probes)
    lucky = sum(len(one.best[1]) / len(one.arms) for one in probes) / len(probes)
    named = (f"{c.results.name}, {c.steps} steps ({len(c.arms)} arms, seeds: {len(c.seeds)})" for c in every)
    note = (
        f"{len(every)} comparisons: {'; '.join(named)}.\n\nAn arm chosen blindly would be the best in {guess:.0%} of "
    )
    note += f"the probes of one seed and within noise of the best in {lucky:.0%}. One seed is never sure."
    publish(DOCS / "evaluation.md", {"advise": f"{grid.table}\n{note}"})


if __name__ == "__main__":
    main()

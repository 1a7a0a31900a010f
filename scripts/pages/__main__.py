"""Everything that docs, README and experiments/ show of the studies, from their records alone.

python -m scripts.pages
"""

from scripts.pages import advise, demo, papers, pool
from scripts.pages.publish import EXPERIMENTS
from unmask.evaluation.results import RECORDS, Results, read_records
from unmask.report.study import write_report


def main() -> None:
    """Summaries of the studies, then the pages."""
    for folder in sorted(path.parent for path in EXPERIMENTS.rglob(RECORDS)):
        compared, screened = (read_records(folder, role) for role in ("compare", "screen"))
        if folder != demo.HERE and compared:
            write_report(Results.of(compared), folder, Results.of(screened) if screened else None)
    papers.main()
    pool.main()
    advise.main()
    demo.write(demo.HERE)


if __name__ == "__main__":
    main()

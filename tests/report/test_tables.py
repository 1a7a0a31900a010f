"""Tables show every name as it is written, whatever signs it holds."""

from pathlib import Path

import pytest
from rich.console import Console

import unmask
from unmask.evaluation.estimate import Estimate
from unmask.evaluation.records import Protocol, Record
from unmask.evaluation.variance import Decomposition
from unmask.report.tables import records_grid, variance_grid

NAMES = ["plain", "run [ema]", "a[/b]"]


def shown(grid):
    console = Console(width=300)
    with console.capture() as found:
        console.print(grid.rich())
    return found.get()


@pytest.mark.parametrize("name", NAMES)
def test_names_stand_in_tables_as_they_are_written(name):
    protocol = Protocol({"of": name}, "data", None, "weights", "1")
    record = Record(name, name, 1.0, 0.9, 1.1, 10, protocol)
    assert shown(records_grid([record], name)).count(name) == 3  # title, head and row

    estimate = Estimate(1.0, 0.9, 1.1)
    arms = {name: {"loss": Decomposition(estimate, estimate, estimate, estimate, 2.0)}}
    assert shown(variance_grid(arms, "loss")).count(name) == 2  # title and row


def test_every_table_of_the_terminal_is_a_grid():
    """There alone are names kept from being read as markup."""
    package = Path(unmask.__file__).parent
    makers = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "rich.table" in path.read_text()
    }
    assert makers == {"report/grid.py"}

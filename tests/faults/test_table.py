"""The table of faults names tests that exist, and leaves out no fault that it promises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = (ROOT / "tests" / "faults" / "README.md").read_text(encoding="utf-8")
# Numbers of the list of faults.
FAULTS = list(range(1, 45))

ROWS = [line for line in TABLE.splitlines() if re.match(r"\| \d+ \|", line)]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE)))


def test_every_fault_has_a_row_with_a_test_and_a_figure() -> None:
    numbers = [int(row.split("|")[1]) for row in ROWS]
    assert sorted(set(numbers)) == FAULTS
    for row in ROWS:
        _, _, fault, tests, figure, _ = row.split("|")
        assert fault.strip(), row
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", tests), row
        assert figure.strip(), row


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_the_table_names_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

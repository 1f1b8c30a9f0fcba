"""A bench, run to its end in this process."""

import json
from typing import Any

import pytest

from bench.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The document that the last line is, and all that was printed."""
    main(arguments)
    printed = capsys.readouterr().out
    document: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert {"bench", "date", "command", "version", "cpu", "num_cores", "torch"} <= document.keys()
    return document, printed
